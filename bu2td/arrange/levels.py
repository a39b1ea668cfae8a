"""Stage 4, arrange: an analysis and options -> the plan of the top-down network.

The levels of the top-down network run coarse to fine. `td` and `uni` give every resolution its own
bottom-up body, `rev` gives the coarsest the body of the finest (`bu2td.arrange.ladder`). For each level this
module chooses the shape (how the coarser features enter), asks `bu2td.arrange.pieces` for the runs of blocks, and
specifies laterals, transitions and merges. Nothing is built here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bu2td.arrange.ladder import Slot, bare_width, block_widths, fed_width, ladder
from bu2td.arrange.notes import notes_of
from bu2td.arrange.pieces import Run, plan_head, plan_input, plan_run
from bu2td.arrange.templates import Templates
from bu2td.ir import Analysis, Block, BlockKind, FrozenMap, LevelPlan, LevelShape, Plan, UnitSpec
from bu2td.options import Options


def arrange(analysis: Analysis, options: Options) -> Plan:
    """Plan a top-down network.

    Needs: an `Analysis` and `Options`.
    Returns: a `Plan` without costs (they are measured on the emitted network).
    Guarantees: reductions fall from the coarsest level to the finest asked for; every piece's widths
        satisfy the channel system; every relaxation is named.

    Raises:
        ReductionError, WidthError: an option does not fit the network.
        UnsupportedOperationError: operations without a converter reduce resolution on a level's path.
    """
    view = analysis.view
    templates = Templates(analysis)
    planner = _LevelPlanner(templates, options)
    slots, levels = ladder(analysis, options), list[LevelPlan]()
    for slot in slots:
        levels.append(planner.level(slot, levels[-1]) if levels else planner.coarsest(slot))
    head = plan_head(templates, levels[-1].width, any(planner.carries_head_convs(slot) for slot in slots))
    prepared = plan_input(templates)
    pieces = [*(p for level in levels for p in level.pieces), head, *([prepared] if prepared else [])]
    return Plan(
        options=options,
        model=type(analysis.capture.source).__name__,
        image_shape=analysis.capture.image_shape,
        levels=tuple(levels),
        head=head,
        input=prepared,
        bottom_up=analysis.levels,
        notes=(*analysis.notes, *notes_of(analysis, options, view, pieces)),
    )


@dataclass(frozen=True)
class _Body:
    """What a level is made of.

    Attributes:
        slot: the level to be.
        blocks: its blocks, head convs included.
        widths: exit of a block -> its width.
        kernels: convolution -> the kernel that it is to have, where it is not its own.
        fed: what the first block is fed with, where that follows from its exit width.
    """

    slot: Slot
    blocks: tuple[Block, ...]
    widths: FrozenMap[str, int]
    kernels: FrozenMap[str, tuple[int, int]]
    fed: int | None

    @property
    def first(self) -> Block:
        return self.blocks[0]

    @property
    def width(self) -> int:
        return self.widths[self.blocks[-1].exit]

    @property
    def first_width(self) -> int:
        return self.widths[self.first.exit]

    @property
    def source(self) -> int | None:
        return self.slot.body.reduction if self.slot.body else None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks)

    def run(self, entry_width: int, factor: int = 1) -> Run:
        """All blocks."""
        return Run(f"r{self.slot.reduction}", self.blocks, entry_width, self.widths, self.kernels, factor)


class _LevelPlanner:
    def __init__(self, templates: Templates, options: Options) -> None:
        self.templates = templates
        self.analysis = templates.analysis
        self.options = options
        self.image_width = self.analysis.image_width

    def coarsest(self, slot: Slot) -> LevelPlan:
        """The first level: its body reads the image, or a lateral of it."""
        body = self._body(slot)
        if body is None:
            width = self._bare_width(slot)
            bare = self.templates.bare_lateral(self.image_width, width)
            return LevelPlan(slot.reduction, LevelShape.COARSEST, None, self.image_width, width, width, bare)
        merge_width = body.fed or body.first_width
        direct = body.first.kind is BlockKind.CONV and not self.templates.leading_norm(body.first)
        lateral = None if direct else self._lateral(body, merge_width)
        return LevelPlan(
            reduction=slot.reduction,
            shape=LevelShape.COARSEST,
            source=body.source,
            entry_width=self.image_width,
            merge_width=merge_width,
            width=body.width,
            lateral=lateral,
            body=plan_run(self.templates, body.run(self.image_width if direct else merge_width)),
            blocks=body.names,
        )

    def level(self, slot: Slot, before: LevelPlan) -> LevelPlan:
        """A finer level, behind the one before it."""
        body = self._body(slot)
        if body is None:
            return self._bare(slot, before)
        if self._is_chain(body, before):
            return self._chain(body, before)
        return self._up_block(body, before)

    def carries_head_convs(self, slot: Slot) -> bool:
        """Head convs end the coarsest level, but for `rev`, where they follow the global pool."""
        return self.options.arrangement != "rev" and self._is_coarsest_body(slot)

    def _is_coarsest_body(self, slot: Slot) -> bool:
        return slot.place == self.analysis.bodies[0]

    def _body(self, slot: Slot) -> _Body | None:
        if slot.body is None:
            return None
        blocks = slot.body.blocks
        widths, first = block_widths(blocks, slot.width), blocks[0]
        if self.carries_head_convs(slot):
            convs = self.analysis.head.convs
            blocks = (*blocks, *convs)
            widths |= {b.exit: slot.width or b.width for b in convs}
        fed = fed_width(first, widths[first.exit] if slot.width else None)
        return _Body(slot, blocks, FrozenMap(widths), self._resolution_kernel(slot, first), fed)

    def _resolution_kernel(self, slot: Slot, first: Block) -> FrozenMap[str, tuple[int, int]]:
        """In levels of plain conv units the first spatial kernel follows the resolution."""
        own = slot.place.blocks[0] if slot.place and slot.place.blocks else None
        if own is None or own == first or BlockKind.COMPOUND in (own.kind, first.kind):
            return FrozenMap()
        mine, its = self.templates.conv_of(first), self.templates.conv_of(own)
        return FrozenMap({mine: self.templates.kernel(its)})

    def _bare_width(self, slot: Slot) -> int:
        width = bare_width(slot, self.analysis, self.options)
        return width or self.templates.view.width(self.analysis.first_conv)

    def _lateral(self, body: _Body, width: int) -> UnitSpec:
        return self.templates.lateral(body.blocks, body.kernels, self.image_width, width)

    # -- shapes ------------------------------------------------------------------------------------

    def _is_chain(self, body: _Body, before: LevelPlan) -> bool:
        """Whether all blocks follow the merge, since the first neither strides nor has a shortcut.

        Nor does a stride count of the plain convolution that the bottom-up network begins with, and nothing does
        behind the levels of a coarse stem.
        """
        first, slot = body.first, body.slot
        begins = first.kind is BlockKind.CONV and slot.body == self.analysis.bodies[-1]
        behind_stem = self.options.stem == "coarse" and before.source is None and self._is_coarsest_body(slot)
        return behind_stem or not (first.shortcut or (first.strides and not begins))

    def _bare(self, slot: Slot, before: LevelPlan) -> LevelPlan:
        """Upsampling and merge alone."""
        width = self._bare_width(slot)
        lateral = self.templates.bare_lateral(self.image_width, width)
        return LevelPlan(
            reduction=slot.reduction,
            shape=LevelShape.BARE,
            source=None,
            entry_width=before.width,
            merge_width=width,
            width=width,
            lateral=lateral,
            transition=self.templates.transition(None, lateral, before.width, width),
            merge=self.templates.merge(None, lateral, width, self.options),
        )

    def _chain(self, body: _Body, before: LevelPlan) -> LevelPlan:
        """Transition, upsampling, merge, then all blocks."""
        width = body.fed or body.first_width
        merged = self._merged(body, before, width, width)
        return replace(merged, shape=LevelShape.CHAIN, body=plan_run(self.templates, body.run(width)))

    def _up_block(self, body: _Body, before: LevelPlan) -> LevelPlan:
        """The first block upsamples, then the merge, then the other blocks."""
        entry_width = body.fed or before.width
        merged = self._merged(body, before, entry_width, body.first_width)
        up = replace(body.run(entry_width, body.slot.factor), blocks=body.blocks[:1])
        rest = replace(body.run(body.first_width), blocks=body.blocks[1:], opens=False)
        return replace(
            merged, up=plan_run(self.templates, up), body=plan_run(self.templates, rest) if rest.blocks else None
        )

    def _merged(self, body: _Body, before: LevelPlan, entry_width: int, merge_width: int) -> LevelPlan:
        """A level with its lateral, its merge, and the transition to ``entry_width`` at low resolution."""
        lateral = self._lateral(body, merge_width)
        return LevelPlan(
            reduction=body.slot.reduction,
            shape=LevelShape.BLOCK,
            source=body.source,
            entry_width=before.width,
            merge_width=merge_width,
            width=body.width,
            lateral=lateral,
            transition=self.templates.transition(body.first, lateral, before.width, entry_width),
            merge=self.templates.merge(body.first, lateral, merge_width, self.options),
            dropouts=body.slot.dropouts,
            blocks=body.names,
        )
