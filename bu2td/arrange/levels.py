"""Pass 5, arrange: an analysis and options -> the plan of the top-down network.

The levels of the top-down network run coarse to fine. `td` and `uni` give every resolution its own
bottom-up body, `rev` gives the coarsest the body of the finest. For each level this pass chooses the
shape (how the coarser features enter), asks `restructure` for the edits and `channels` for the widths,
and specifies laterals, transitions and merges. Nothing is built here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from bu2td.arrange.edits import entry_in_place_of, restructure
from bu2td.arrange.templates import Templates
from bu2td.arrange.widths import Request, Solution, solve_widths
from bu2td.errors import ReductionError, WidthError
from bu2td.graph.view import GraphView
from bu2td.ir.bottom_up import Analysis, Block, BottomUpLevel
from bu2td.ir.plan import Edits, LevelPlan, Piece, Plan
from bu2td.ops.roles import Role
from bu2td.options import Options

#: How often a run of blocks is planned again with other widths at its borders; two are enough in practice.
_ATTEMPTS = 6


@dataclass(frozen=True)
class _Slot:
    """A level to be: its resolution, the bottom-up level whose body it takes, its widths.

    ``place`` is the bottom-up level that has a body at this place, ``stem`` marks a merge that takes the
    place of a stride of the stem, at the width of the coarsest stage.
    """

    reduction: int
    body: BottomUpLevel | None = None
    place: BottomUpLevel | None = None
    width: int | None = None
    stem: bool = False


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
    return _Arranger(analysis, options).run()


class _Arranger:
    def __init__(self, analysis: Analysis, options: Options) -> None:
        self.analysis = analysis
        self.options = options
        self.view = GraphView(analysis.capture, analysis.dims)
        self.templates = Templates(self.view, analysis)
        self.notes: list[str] = []
        self.opaque: dict[str, str] = {}
        self.image_width = analysis.capture.image_shape[1]

    def run(self) -> Plan:
        slots, levels = self._slots(), list[LevelPlan]()
        for i, slot in enumerate(slots):
            factor = slots[i - 1].reduction // slot.reduction if i else 1
            levels.append(self._level(slot, levels[-1] if levels else None, factor, slots[i - 1] if i else None))
        head = self._head(levels[-1].width, any(self._carries_head_convs(slot) for slot in slots))
        if shared := self._shared():
            self.notes.append(
                f"weights that the bottom-up network uses in several places are separate in each: "
                f"{', '.join(shared)}"
            )
        if self.opaque:
            listed = "; ".join(f"{what} at {where}" for where, what in self.opaque.items())
            self.notes.append(f"operations without a converter, whose channels stay as they are: {listed}")
        return Plan(
            options=self.options,
            model=type(self.analysis.capture.source).__name__,
            image_shape=self.analysis.capture.image_shape,
            levels=tuple(levels),
            head=head,
            input=self._input(),
            bottom_up=tuple(self.analysis.rows()),
            notes=(*self.analysis.notes, *self.notes),
        )

    def _shared(self) -> list[str]:
        """Modules with parameters that are called more than once, and parameters that several levels read."""
        view, levels = self.view, self.analysis.levels
        used = [str(n.target) for n in view.nodes.values() if n.op == "call_module"]
        for part in [*({n for b in level.blocks for n in b.nodes} for level in levels), self.analysis.head.nodes]:
            used += {str(view.nodes[n].target) for n in part if view.role(n) == Role.ATTRIBUTE}
        owned = [f"{name}." for name, _ in view.graph_module.named_parameters()]
        return [n for n, count in Counter(used).items() if count > 1 and any(o.startswith(f"{n}.") for o in owned)]

    # -- which level gets what ---------------------------------------------------------------------

    def _slots(self) -> list[_Slot]:
        analysis, options = self.analysis, self.options
        bodies = list(analysis.bodies)
        given = dict(zip(bodies, reversed(bodies), strict=True)) if options.arrangement == "rev" else {}
        slots: list[_Slot] = []
        strides = analysis.stem.strides if options.stem == "coarse" else ()
        if options.stem == "coarse" and not strides:
            self.notes.append("stem='coarse' changes nothing: the network has no stem that strides")
        if strides:
            reduction = analysis.ladder[0]
            for stride in strides:
                slots.append(_Slot(reduction, stem=True))
                reduction //= stride
            for i, body in enumerate(bodies):
                if i:
                    reduction //= bodies[i - 1].reduction // body.reduction
                slots.append(_Slot(reduction, given.get(body, body), place=body))
            if reduction > 1:
                slots.append(_Slot(1))
        else:
            for level in analysis.levels:
                source = given.get(level, level) if level.blocks else None
                slots.append(_Slot(level.reduction, source, place=level))
        return self._with_widths(self._kept(slots))

    def _kept(self, slots: list[_Slot]) -> list[_Slot]:
        """Apply ``reductions`` and ``finest_reduction``."""
        ladder = [slot.reduction for slot in slots]
        wanted = self.options.reductions
        asked = [*(wanted or ()), self.options.finest_reduction]
        for reduction in asked:
            if reduction not in ladder:
                raise ReductionError(
                    f"reduction {reduction!r} is not on the ladder of this network; it has {ladder}"
                )
        keep = set(wanted if wanted is not None else ladder)
        kept = [s for s in slots if s.reduction in keep and s.reduction >= self.options.finest_reduction]
        if not any(s.body for s in kept):
            raise ReductionError(
                f"none of the reductions {sorted(keep, reverse=True)} down to {self.options.finest_reduction} "
                f"has a body; levels with a body are {[s.reduction for s in slots if s.body]}"
            )
        if len(kept) < 2:
            raise ReductionError(
                f"a top-down network needs two levels at least; choose more than one reduction of {ladder}"
            )
        return kept

    def _with_widths(self, slots: list[_Slot]) -> list[_Slot]:
        arrangement = self.options.arrangement
        bodied = [s for s in slots if s.body]
        if arrangement == "uni":
            width = self._common_width()
            return [replace(s, width=width) if s.body else s for s in slots]
        if isinstance(arrangement, str):
            return slots
        if len(arrangement) not in (len(bodied), len(slots)):
            raise WidthError(
                f"arrangement={list(arrangement)} has {len(arrangement)} widths; this network has {len(bodied)} "
                f"levels with a body ({[s.reduction for s in bodied]}) and {len(slots)} in all "
                f"({[s.reduction for s in slots]})"
            )
        target = slots if len(arrangement) == len(slots) else bodied
        chosen = {s.reduction: w for s, w in zip(target, arrangement, strict=True)}
        return [replace(s, width=chosen.get(s.reduction)) for s in slots]

    def _common_width(self) -> int:
        """U of `uni`: bottom-up width of the middle level with a body; of an even number, the finer of the two."""
        bodies = self.analysis.bodies
        return self.options.width or bodies[len(bodies) // 2].width

    # -- one level ---------------------------------------------------------------------------------

    def _level(self, slot: _Slot, before: LevelPlan | None, factor: int, coarser: _Slot | None) -> LevelPlan:
        if slot.body is None:
            return self._bare(slot, before)
        blocks = list(slot.body.blocks)
        widths = _block_widths(blocks, slot.width)
        if self._carries_head_convs(slot):
            convs = list(self.analysis.head.convs)
            blocks, widths = blocks + convs, {**widths, **{b.exit: slot.width or b.width for b in convs}}
        first = blocks[0]
        kernels = self._resolution_kernel(slot, first)
        entry = _entry_width(first, widths[first.exit] if slot.width else None)
        level = _LevelParts(slot, blocks, widths, kernels)
        if before is None:
            return self._coarsest(level, first, entry)
        if self.options.stem == "coarse" and before.source is None and self._is_first_body(slot):
            return self._chain(level, before, entry or widths[first.exit], coarser)
        plain_first = first.kind == "conv" and first.strides and slot.body == self.analysis.bodies[-1]
        if (not first.strides and not first.shortcut) or plain_first:
            return self._chain(level, before, entry or widths[first.exit], coarser)
        return self._up_block(level, before, entry, factor, coarser)

    def _is_first_body(self, slot: _Slot) -> bool:
        return slot.place == self.analysis.bodies[0]

    def _carries_head_convs(self, slot: _Slot) -> bool:
        """Head convs end the coarsest level, but for `rev`, where they follow the global pool."""
        return self.options.arrangement != "rev" and self._is_first_body(slot)

    def _bare(self, slot: _Slot, before: LevelPlan | None) -> LevelPlan:
        width = slot.width or self._bare_width(slot)
        lateral = self.templates.bare_lateral(self.image_width, width)
        if before is None:
            return LevelPlan(slot.reduction, "coarsest", None, self.image_width, width, width, lateral)
        return LevelPlan(
            reduction=slot.reduction,
            shape="bare",
            source=None,
            entry_width=before.width,
            merge_width=width,
            width=width,
            lateral=lateral,
            transition=self.templates.transition(None, lateral, before.width, width),
            merge=self.templates.merge(None, lateral, width, self.options),
        )

    def _bare_width(self, slot: _Slot) -> int:
        if slot.stem:
            return self._coarsest_stage()
        for level in self.analysis.levels:
            if level.reduction == slot.reduction and not level.blocks:
                return level.width
        return self.view.module(self.analysis.first_conv).out_channels

    def _coarsest_stage(self) -> int:
        """Width at which the levels that stand for the stem merge: that of the coarsest stage."""
        arrangement = self.options.arrangement
        bodies = self.analysis.bodies
        if arrangement == "uni":
            return self._common_width()
        if not isinstance(arrangement, str):
            return arrangement[-len(bodies)] if len(arrangement) == len(bodies) else arrangement[0]
        first = (bodies[-1] if arrangement == "rev" else bodies[0]).blocks[0]
        return _entry_width(first, None) or first.width

    def _coarsest(self, level: _LevelParts, first: Block, entry: int | None) -> LevelPlan:
        direct = first.kind == "conv" and not self.templates.leading_norm(first)
        merge_width = entry or level.widths[first.exit]
        entry_width = self.image_width if direct else merge_width
        lateral = (
            None if direct else self.templates.lateral(level.blocks, level.kernels, self.image_width, merge_width)
        )
        body = self._piece(level, level.blocks, entry_width, plain_first=True)
        return LevelPlan(
            reduction=level.slot.reduction,
            shape="coarsest",
            source=level.source,
            entry_width=self.image_width,
            merge_width=merge_width,
            width=level.width,
            lateral=lateral,
            body=body,
            blocks=level.names,
        )

    def _chain(self, level: _LevelParts, before: LevelPlan, merge_width: int, coarser: _Slot | None) -> LevelPlan:
        """Transition, upsampling, merge, then all blocks."""
        merged = self._merged(level, before, merge_width, merge_width, coarser)
        return replace(merged, body=self._piece(level, level.blocks, merge_width, plain_first=True))

    def _up_block(
        self, level: _LevelParts, before: LevelPlan, entry: int | None, factor: int, coarser: _Slot | None
    ) -> LevelPlan:
        """The first block upsamples, then the merge, then the other blocks."""
        first, rest = level.blocks[0], level.blocks[1:]
        merge_width, entry_width = level.widths[first.exit], entry or before.width
        merged = self._merged(level, before, entry_width, merge_width, coarser)
        return replace(
            merged,
            shape="block",
            up=self._piece(level, [first], entry_width, factor=factor),
            body=self._piece(level, rest, merge_width) if rest else None,
        )

    def _merged(
        self,
        level: _LevelParts,
        before: LevelPlan,
        entry_width: int,
        merge_width: int,
        coarser: _Slot | None,
    ) -> LevelPlan:
        """A level with its lateral, its merge, and the transition to ``entry_width`` at low resolution."""
        first = level.blocks[0]
        lateral = self.templates.lateral(level.blocks, level.kernels, self.image_width, merge_width)
        return LevelPlan(
            reduction=level.slot.reduction,
            shape="chain",
            source=level.source,
            entry_width=before.width,
            merge_width=merge_width,
            width=level.width,
            lateral=lateral,
            transition=self.templates.transition(first, lateral, before.width, entry_width),
            merge=self.templates.merge(first, lateral, merge_width, self.options),
            dropouts=coarser.place.dropouts if coarser and coarser.place else (),
            blocks=level.names,
        )

    def _resolution_kernel(self, slot: _Slot, first: Block) -> dict[str, tuple[int, int]]:
        """In levels of plain conv units the first spatial kernel follows the resolution."""
        own = slot.place.blocks[0] if slot.place and slot.place.blocks else None
        if own is None or own == first or own.kind != "conv" or first.kind != "conv":
            return {}
        mine, its = self.templates.conv_of(first), self.templates.conv_of(own)
        return {mine: self.templates.kernel(its)}

    # -- pieces ------------------------------------------------------------------------------------

    def _piece(
        self,
        level: _LevelParts,
        blocks: list[Block],
        entry_width: int,
        plain_first: bool = False,
        factor: int = 1,
    ) -> Piece:
        """Plan a run of blocks; where widths at its borders cannot be met, plan it again with those that can."""
        first, last = blocks[0], blocks[-1]
        entry, widths = entry_width, dict(level.widths)
        relaxations: list[str] = []
        for _ in range(_ATTEMPTS):
            request = self._request(level, blocks, entry, widths, plain_first, factor)
            solution = self._solve(request)
            if "frozen" in solution.relaxations:
                if "frozen" in relaxations:
                    raise WidthError(
                        f"the converters of {first.name} to {last.name} contradict one another: the network's own "
                        f"widths do not satisfy them"
                    )
                relaxations = ["frozen"]
                entry, widths = first.entry_width, {**widths, **{b.exit: b.width for b in blocks}}
                continue
            relaxations += [r for r in solution.relaxations if r not in relaxations]
            if (solution.entry_width, solution.exit_width) == (entry, widths[last.exit]):
                break
            entry, widths[last.exit] = solution.entry_width, solution.exit_width
        else:
            raise WidthError(f"no widths were found for r{level.slot.reduction} ({first.name} to {last.name})")
        piece = _plain_piece(request, solution, factor)
        exit_width = level.widths[last.exit]
        return replace(
            piece,
            entry_width=entry_width,
            exit_width=exit_width,
            entry_adapter=self.templates.adapter(first, entry_width, entry),
            exit_adapter=self.templates.adapter(first, widths[last.exit], exit_width),
            relaxations=tuple(relaxations),
        )

    def _request(
        self,
        level: _LevelParts,
        blocks: list[Block],
        entry_width: int,
        widths: Mapping[str, int],
        plain_first: bool,
        factor: int,
    ) -> Request:
        first, last = blocks[0], blocks[-1]
        edits = restructure(
            self.view,
            self.templates,
            blocks,
            entry_width=entry_width,
            widths=widths,
            first=first if plain_first or factor > 1 else None,
            upsampling=factor > 1,
            kernels=level.kernels,
        )
        return Request(
            name=f"r{level.slot.reduction}",
            nodes=tuple(dict.fromkeys(n for b in blocks for n in b.nodes)),
            entry=first.entry,
            exit=last.exit,
            entry_width=entry_width,
            exit_width=widths[last.exit],
            edits=edits,
            pins={b.exit: widths[b.exit] for b in blocks[:-1]},
            factors={n: Fraction(widths[b.exit], b.width) for b in blocks for n in b.nodes},
        )

    def _solve(self, request: Request) -> Solution:
        solution = solve_widths(self.view, request)
        for name in solution.opaque:
            self.opaque[self.view.where(name)] = self.view.operation(name)
        return solution

    def _input(self) -> Piece | None:
        """What prepares the image, which the pyramid then reduces."""
        nodes = self.analysis.input_nodes
        if not nodes:
            return None
        image = next(name for name, node in self.view.nodes.items() if node.op == "placeholder")
        exit_, width = self.analysis.input_exit, self.image_width
        request = Request("input", nodes, image, exit_, width, width, Edits(), {}, {})
        return _plain_piece(request, self._solve(request), 1)

    def _head(self, width: int, convs_placed: bool) -> Piece:
        head = self.analysis.head
        nodes, entry = head.nodes, head.entry
        pools: dict[str, tuple[int, int]] = {}
        if head.convs and not convs_placed:
            nodes = tuple(dict.fromkeys((*(n for b in head.convs for n in b.nodes), *nodes)))
            entry = head.convs[0].entry
            if not any(self.view.converter(n).needs_map for n in nodes):
                pools[nodes[0]] = (1, 1)
        edits = Edits(
            bypass=entry_in_place_of(nodes, entry, self.analysis),
            pools={**pools, **self.templates.head_pool(nodes)},
            excursions=frozenset(nodes),
        )
        request = Request(
            name="head",
            nodes=nodes,
            entry=entry,
            exit=head.output,
            entry_width=width,
            exit_width=self.view.dims[head.output][1].size,
            edits=edits,
            pins={},
            factors={},
        )
        solution = self._solve(request)
        return replace(
            _plain_piece(request, solution, 1),
            entry_adapter=self.templates.adapter(None, width, solution.entry_width),
        )


@dataclass(frozen=True)
class _LevelParts:
    """What a level is made of: its blocks, their exit widths, and kernels that are forced."""

    slot: _Slot
    blocks: list[Block]
    widths: Mapping[str, int]
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.widths[self.blocks[-1].exit]

    @property
    def source(self) -> int | None:
        return self.slot.body.reduction if self.slot.body else None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.blocks)


def _plain_piece(request: Request, solution: Solution, factor: int) -> Piece:
    """A piece without adapters."""
    return Piece(
        name=request.name,
        nodes=request.nodes,
        entry=request.entry,
        exit=request.exit,
        entry_width=request.entry_width,
        exit_width=request.exit_width,
        edits=request.edits,
        sizes=solution.sizes,
        factor=factor,
        relaxations=solution.relaxations,
    )


def _entry_width(first: Block, width: int | None) -> int | None:
    """The width that a block which hands its input on is fed with for an exit width; None for other blocks."""
    if not (first.concatenates_entry or first.keeps_entry_width):
        return None
    if width is None:
        return first.entry_width
    return max(1, round(Fraction(width * first.entry_width, first.width)))


def _block_widths(blocks: list[Block], width: int | None) -> dict[str, int]:
    """Exit width of every block: the common one, but what a block that appends is fed with keeps its share."""
    widths: dict[str, int] = {}
    following: Block | None = None
    for block in reversed(blocks):
        fed = _entry_width(following, widths[following.exit] if width else None) if following else None
        widths[block.exit] = fed or width or block.width
        following = block
    return widths
