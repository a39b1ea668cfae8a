"""Part of analyse: what blocks are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from bu2td.analyse.joins import Stretch
from bu2td.graph import GraphView
from bu2td.ir import Block
from bu2td.ops import Role


def common_path(paths: Iterable[str]) -> str:
    """The module path that several paths begin with."""
    steps = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))


def block_name(view: GraphView, stretch: Stretch) -> str:
    """The path of the smallest module that holds a block, or of its first module where none does."""
    called = [n for n in stretch.nodes if view.nodes[n].op == "call_module"]
    # An activation may be shared by the whole network, and says nothing about where a block is.
    telling = [n for n in called if view.role(n) not in (Role.ACT, Role.DROPOUT)] or called
    paths = [view.path(n) for n in telling]
    return (common_path(paths) or paths[0]) if paths else stretch.exit


def told_apart(view: GraphView, blocks: Sequence[Block]) -> list[Block]:
    """Blocks, named after their first convolution where a common module does not tell them apart."""
    names = [b.name for b in blocks]
    result = []
    for block in blocks:
        shared = [n for n in names if n == block.name or n.startswith(block.name + ".")]
        convs = [n for n in block.nodes if view.role(n) == Role.CONV]
        alone = len(shared) == 1 or not convs
        result.append(block if alone else replace(block, name=view.path(convs[0])))
    return result
