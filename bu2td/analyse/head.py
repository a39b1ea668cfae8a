"""Part of analyse: what of the last blocks belongs to the head, and which map size the head binds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bu2td.analyse.blocks import Blocks, whole_reduction
from bu2td.analyse.joins import Stretch
from bu2td.analyse.names import common_path
from bu2td.analyse.segments import Segment
from bu2td.analyse.trunk import covers_map
from bu2td.errors import TopologyError
from bu2td.graph import GraphView
from bu2td.ir import Block, BlockKind, Head, is_feature_map, is_tensor
from bu2td.ops import Role


@dataclass(frozen=True)
class Parting:
    """Blocks behind the stem, parted into body, 1x1 head convs before the pool, and a classifier conv."""

    body: tuple[Block, ...]
    convs: tuple[Block, ...]
    classifier: tuple[Block, ...]

    @property
    def exit(self) -> str:
        """The trunk tensor that ends body and head convs."""
        return (self.convs or self.body)[-1].exit


def part_head(
    view: GraphView, found: Blocks, stem: Sequence[Block], body: Sequence[Block], classes: int
) -> Parting:
    """Split trailing 1x1 conv units off the body.

    A conv unit as wide as there are classes is the classifier; one beside which the module around it and the
    block before lists blocks of other resolutions is a head conv.

    Raises:
        TopologyError: no block is left.
    """
    kept = list(body)
    convs: list[Block] = []
    classifier: list[Block] = []
    while len(kept) > 1:
        last, before = kept[-1], kept[-2]
        conv = _pointwise_conv(view, last)
        if conv is None:
            break
        if last.width == classes and not convs and not classifier:
            classifier.append(kept.pop())
            continue
        around = common_path([view.path(conv), before.name])
        spans = any(
            b.reduction != last.reduction and (not around or b.name.startswith(around + "."))
            for b in [*stem, *kept]
        )
        if found.plain or not spans or before.reduction != last.reduction:
            break
        convs.insert(0, kept.pop())
    if not kept:
        raise TopologyError("the network has no block before its classifier")
    return Parting(tuple(kept), tuple(convs), tuple(classifier))


def _pointwise_conv(view: GraphView, block: Block) -> str | None:
    """The convolution of a 1x1 conv unit that does not stride."""
    conv = next((n for n in block.nodes if view.role(n) == Role.CONV), None)
    fits = block.kind == BlockKind.CONV and not block.strides and conv and view.kernel(conv) == (1, 1)
    return conv if fits else None


def trailing_pools(view: GraphView, pools: Sequence[Segment], parting: Parting) -> tuple[Segment, ...]:
    """The downsamplers behind the last block: levels without parameters, which are dropped."""
    return tuple(p for p in pools if view.order[p.exit] > view.order[parting.exit])


def dropped_level(view: GraphView, trailing: Sequence[Segment]) -> str:
    """What to say of levels that are dropped."""
    dropped = ", ".join(f"r{whole_reduction(view, p.exit)}" for p in trailing)
    return f"the trailing level without parameters ({dropped}, {view.path(trailing[0].nodes[0])}) is dropped"


def make_head(
    view: GraphView, found: Blocks, parting: Parting, trailing: Sequence[Segment], tail: Sequence[str], logits: str
) -> Head:
    """The head: classifier convs, what waits behind the last block, and the tail of the trunk."""
    parts: list[Stretch] = [*parting.classifier, *found.waiting]
    nodes = {n for part in parts for n in part.nodes} | {*tail}
    size, reader = _bound_size(view, tail)
    return Head(
        nodes=tuple(sorted(nodes, key=view.order.__getitem__)),
        entry=trailing[-1].exit if trailing else parting.exit,
        output=logits,
        convs=parting.convs,
        pooled_size=size,
        pooled_reader=reader,
    )


def _bound_size(view: GraphView, tail: Sequence[str]) -> tuple[tuple[int, int] | None, str]:
    """(H, W) of the map that the head binds by flattening it or by a window over all of it, and what does so."""
    for name in tail:
        value = view.dims[name]
        if not is_tensor(value):
            continue
        if covers_map(view, name):
            source = view.dims[view.inputs(name)[0]]
            return (source[2].size, source[3].size), name
        if len(value) == 2 and view.role(name) == Role.PASS and view.inputs(name):
            # A flattening of a map without an adaptive pool: its size is that of the model's own image.
            source = view.dims[view.inputs(name)[0]]
            if is_feature_map(source):
                return (source[2].size, source[3].size), name
    return None, ""
