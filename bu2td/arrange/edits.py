"""Part of arrange: the edits that turn bottom-up blocks into top-down ones, widths apart.

Rules (design, section 3). On every path that ends at the blocks' own resolution strides go: a convolution
is rebuilt with stride 1, a pool that only reduces is dropped. In an up-block every path from entry to exit
passes exactly one upsampling, placed as late as the function allows: right before the first operation that
looks around, else where the path joins one that is at high resolution already, else at the exit. Nearest
and bilinear upsampling commute with pointwise operations, so "late" is the same function, cheaper.
What lies at a coarser resolution than the blocks themselves is an excursion and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bu2td.arrange.shortcuts import entry_in_place_of, shortcut_edits
from bu2td.arrange.templates import Templates, odd_kernel
from bu2td.errors import UnsupportedOperationError
from bu2td.graph.view import GraphView
from bu2td.ir.bottom_up import Block
from bu2td.ir.plan import Edits, Projection
from bu2td.ir.values import is_feature_map, is_spatial
from bu2td.ops.roles import Role


def restructure(
    view: GraphView,
    templates: Templates,
    blocks: Sequence[Block],
    *,
    entry_width: int,
    widths: Mapping[str, int],
    first: Block | None,
    upsampling: bool,
    kernels: Mapping[str, tuple[int, int]],
) -> Edits:
    """Decide the edits of a run of blocks.

    Needs: consecutive blocks; ``first`` is the level's first block if it is among them.
    Returns: `Edits`.
    Guarantees: with ``upsampling``, one upsampling on every spatial path from entry to exit; without, none.
        No operation on a path to the exit reduces resolution.

    Raises:
        UnsupportedOperationError: operations that cannot be rebuilt reduce resolution; all are listed.
    """
    bypass = entry_in_place_of([n for b in blocks for n in b.nodes], blocks[0].entry, templates.analysis)
    stride_one: set[str] = set()
    new_kernels: dict[str, tuple[int, int]] = {}
    excursions: set[str] = set()
    unsupported: list[str] = []
    for block in blocks:
        for name in block.nodes:
            role = view.role(name)
            if not is_spatial(view.dims[name]) or not view.inputs(name):
                continue
            source = view.inputs(name)[0]
            before, after = view.reduction(source), view.reduction(name)
            coarser = [r for r in (before, after) if r is not None and r > block.reduction]
            if coarser:
                excursions.add(name)
            elif role == Role.CONV:
                kernel = kernels.get(name) or odd_kernel(view.kernel(name), view.stride(name))
                if kernel != view.kernel(name):
                    new_kernels[name] = kernel
                if view.stride(name) != (1, 1):
                    stride_one.add(name)
            elif role == Role.ATTENTION:
                stride_one |= {name} if view.stride(name) != (1, 1) else set()
            elif (role == Role.POOL and before != after) or (role == Role.PAD and not view.pads_channels(name)):
                bypass[name] = source
            elif (
                before not in (None, after)
                and role not in (Role.RESAMPLE, Role.GATE)
                and (after or role == Role.OPAQUE)
            ):
                unsupported.append(name)  # behind a view the reduction may be None: positions became tokens
    if unsupported:
        raise _unsupported(view, unsupported)
    projections: list[Projection] = []
    if first is not None:
        shortcuts, projections = shortcut_edits(templates, first, entry_width, widths)
        bypass.update(shortcuts)
    edits = Edits(
        bypass=bypass,
        stride_one=frozenset(stride_one),
        kernels=new_kernels,
        projections=tuple(projections),
        excursions=frozenset(excursions),
    )
    return _with_upsampling(view, blocks, edits) if upsampling else edits


def _unsupported(view: GraphView, nodes: list[str]) -> UnsupportedOperationError:
    places: dict[str, list[str]] = {}
    for name in nodes:
        places.setdefault(view.operation(name), []).append(view.where(name))
    lines = [
        f"  {key} in {', '.join(dict.fromkeys(where))}: register a rule with\n"
        f"    @bu2td.register_converter({key})\n"
        f"    class ...(bu2td.Converter): ..."
        for key, where in places.items()
    ]
    return UnsupportedOperationError(
        "these operations reduce resolution, and no converter says how they work without a stride:\n"
        + "\n".join(lines)
    )


def _with_upsampling(view: GraphView, blocks: Sequence[Block], edits: Edits) -> Edits:
    """Place the upsamplings of an up-block."""
    entry, exit_ = blocks[0].entry, blocks[-1].exit
    projected = {(p.join, p.operand): p.source for p in edits.projections}
    high: dict[str, bool]
    upsample: dict[str, set[str]]

    def producer(name: str, reader: str) -> str:
        name = projected.get((reader, name), name)
        while name in edits.bypass:
            name = edits.bypass[name]
        return name

    nodes = [n for b in blocks for n in b.nodes]
    alive = alive_nodes(view, nodes, exit_, edits)
    spatial = [n for n in nodes if n in alive and n not in edits.bypass and is_spatial(view.dims[n])]
    moved: set[str] = set()
    while True:
        high, upsample = {entry: False}, {}
        for name in spatial:
            sources = [producer(s, name) for s in view.inputs(name)]
            looks_around = (
                name in moved
                or name in edits.excursions
                or not (
                    view.role(name).local
                    or (view.role(name) == Role.CONV and edits.kernels.get(name, view.kernel(name)) == (1, 1))
                )
            )
            high[name] = looks_around or any(high.get(s, False) for s in sources)
            if high[name]:
                for source, original in zip(sources, view.inputs(name), strict=True):
                    if not high.get(source, False):
                        # A built projection is upsampled behind its convolution, for its one reader.
                        key = original if (name, original) in projected else source
                        upsample.setdefault(key, set()).add(name)
        # Only an (N, C, H, W) map can be upsampled: what lies between it and its reader moves up.
        unfit = {
            source
            for source, readers in upsample.items()
            if not is_feature_map(view.dims[source]) and any((r, source) not in projected for r in readers)
        }
        if not unfit:
            break
        moved |= unfit
    last = exit_
    while last in edits.bypass:
        last = edits.bypass[last]
    if not high[last]:
        upsample.setdefault(last, set()).add("")
    for name in nodes:
        if name in alive and view.dims[name] is None:
            for source in (producer(s, name) for s in view.inputs(name)):
                if not high.get(source, False) and any(high.get(n, False) for n in _sized_by(view, name)):
                    upsample.setdefault(source, set()).add(name)
    return replace(edits, upsample={name: frozenset(readers) for name, readers in upsample.items()})


def _sized_by(view: GraphView, name: str) -> set[str]:
    """The tensors that are made with a size which a node reads."""
    found: set[str] = set()
    stack = [name]
    while stack:
        for user in view.nodes[stack.pop()].users:
            if view.dims.get(user.name) is None:
                stack.append(user.name)
            else:
                found.add(user.name)
    return found


def alive_nodes(view: GraphView, nodes: Sequence[str], exit_: str, edits: Edits) -> set[str]:
    """Nodes that still reach the exit once edits are applied (dropped projections are dead code)."""
    inside = set(nodes)
    replaced = {p.join: p for p in edits.projections}
    alive: set[str] = set()
    stack = [exit_]
    while stack:
        name = stack.pop()
        while name in edits.bypass:
            name = edits.bypass[name]
        if name in alive or name not in inside:
            continue
        alive.add(name)
        for source in view.nodes[name].all_input_nodes:
            projection = replaced.get(name)
            if projection and projection.operand == source.name:
                stack.append(projection.source)
            else:
                stack.append(source.name)
    return alive
