"""Part of arrange: runs of blocks, the head and the image's preparation become pieces, with widths that fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from bu2td.arrange.edits import restructure
from bu2td.arrange.shortcuts import entry_in_place_of
from bu2td.arrange.templates import Templates
from bu2td.arrange.widths import Request, Solution, solve_widths
from bu2td.errors import WidthError
from bu2td.ir import Block, Edits, FrozenMap, Piece, Relaxation

#: How often a run of blocks is planned again with other widths at its borders; two are enough in practice.
_ROUNDS = 6


@dataclass(frozen=True)
class Run:
    """Consecutive blocks of one level.

    Attributes:
        level: its name.
        blocks: in bottom-up order.
        entry_width: of what the first block reads.
        widths: exit of a block -> its width.
        kernels: convolution -> the kernel that it is to have, where it is not its own.
        factor: by which the first block upsamples.
        opens: the first block is the first of its level.
    """

    level: str
    blocks: tuple[Block, ...]
    entry_width: int
    widths: FrozenMap[str, int]
    kernels: FrozenMap[str, tuple[int, int]]
    factor: int = 1
    opens: bool = True

    @property
    def exit_width(self) -> int:
        """Width of the last block."""
        return self.widths[self.blocks[-1].exit]

    @property
    def borders(self) -> tuple[int, int]:
        """Widths of entry and exit."""
        return self.entry_width, self.exit_width

    def between(self, entry_width: int, exit_width: int) -> Run:
        """The same blocks with other widths at the borders."""
        widths = FrozenMap({**self.widths, self.blocks[-1].exit: exit_width})
        return replace(self, entry_width=entry_width, widths=widths)

    def bottom_up(self) -> Run:
        """The same blocks, as wide as in the bottom-up network."""
        widths = FrozenMap({**self.widths, **{b.exit: b.width for b in self.blocks}})
        return replace(self, entry_width=self.blocks[0].entry_width, widths=widths)

    def __str__(self) -> str:
        return f"{self.blocks[0].name} to {self.blocks[-1].name}"


def plan_run(templates: Templates, asked: Run) -> Piece:
    """Plan a run of blocks; where widths at its borders cannot be met, plan it again with those that can.

    Needs: the `Run` as its level wants it.
    Returns: a `Piece`.
    Guarantees: its widths at the borders are the ones that are asked for; adapters make up for the difference.

    Raises:
        WidthError: converters contradict one another.
        UnsupportedOperationError: see `bu2td.arrange.edits.restructure`.
    """
    run, relaxations = asked, list[Relaxation]()
    for _ in range(_ROUNDS):
        request = _request(templates, run)
        solution = solve_widths(templates.view, request)
        if solution.relaxation is Relaxation.FROZEN:
            if Relaxation.FROZEN in relaxations:
                raise WidthError(
                    f"the converters of {run} contradict one another: the network's own widths do not satisfy them"
                )
            run, relaxations = run.bottom_up(), [Relaxation.FROZEN]
            continue
        if solution.relaxation and solution.relaxation not in relaxations:
            relaxations.append(solution.relaxation)
        found = (solution.entry_width, solution.exit_width)
        if found == run.borders:
            piece = replace(_piece(request, solution), factor=run.factor, relaxations=tuple(relaxations))
            return _adapted(templates, piece, asked)
        run = run.between(*found)
    raise WidthError(f"no widths were found for {run.level} ({run})")


def _request(templates: Templates, run: Run) -> Request:
    blocks = run.blocks
    edits = restructure(
        templates.view,
        templates,
        blocks,
        entry_width=run.entry_width,
        widths=run.widths,
        first=blocks[0] if run.opens else None,
        upsampling=run.factor > 1,
        kernels=run.kernels,
    )
    return Request(
        name=run.level,
        nodes=tuple(dict.fromkeys(n for b in blocks for n in b.nodes)),
        entry=blocks[0].entry,
        exit=blocks[-1].exit,
        entry_width=run.entry_width,
        exit_width=run.exit_width,
        edits=edits,
        pins=FrozenMap({b.exit: run.widths[b.exit] for b in blocks[:-1]}),
        factors=FrozenMap({n: Fraction(run.widths[b.exit], b.width) for b in blocks for n in b.nodes}),
    )


def _piece(request: Request, solution: Solution) -> Piece:
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
        relaxations=(solution.relaxation,) if solution.relaxation else (),
        opaque=solution.opaque,
    )


def _adapted(templates: Templates, piece: Piece, asked: Run) -> Piece:
    """A piece between the widths that were asked for."""
    first = asked.blocks[0]
    return replace(
        piece,
        entry_width=asked.entry_width,
        exit_width=asked.exit_width,
        entry_adapter=templates.adapter(first, asked.entry_width, piece.entry_width),
        exit_adapter=templates.adapter(first, piece.exit_width, asked.exit_width),
    )


def plan_input(templates: Templates) -> Piece | None:
    """What prepares the image, which the pyramid then reduces; None where nothing does."""
    view, analysis = templates.view, templates.analysis
    if not analysis.input_nodes:
        return None
    image = next(name for name, node in view.nodes.items() if node.op == "placeholder")
    edits = Edits(excursions=frozenset(analysis.input_nodes))
    widths = analysis.capture.image_shape[1], analysis.image_width
    request = Request("input", analysis.input_nodes, image, analysis.input_exit, *widths, edits)
    return _piece(request, solve_widths(view, request))


def plan_head(templates: Templates, width: int, convs_placed: bool) -> Piece:
    """The head for a last level of some width; its convs are part of it unless a level has them already."""
    view, head = templates.view, templates.analysis.head
    nodes, entry = head.nodes, head.entry
    pools = dict(head.pools)
    if head.convs and not convs_placed:
        nodes = tuple(dict.fromkeys((*(n for b in head.convs for n in b.nodes), *nodes)))
        entry = head.convs[0].entry
        if not any(view.converter(n).needs_map for n in nodes):
            pools = {nodes[0]: (1, 1), **pools}
    edits = Edits(
        bypass=FrozenMap(entry_in_place_of(nodes, entry, templates.analysis)),
        pools=FrozenMap(pools),
        excursions=frozenset(nodes),
    )
    classes = view.dims[head.output][1].size
    request = Request("head", nodes, entry, head.output, width, classes, edits)
    solution = solve_widths(view, request)
    piece = _piece(request, solution)
    return replace(piece, entry_adapter=templates.adapter(None, width, solution.entry_width))
