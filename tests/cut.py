"""Small networks, cut as far as a test wants to look."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.analyse.segments import Segment, read_segments
from bu2td.analyse.trunk import Region, find_regions
from bu2td.capture.trace import capture
from bu2td.graph import GraphView
from bu2td.probe.measure import probe


class Branches(nn.Module):
    """Paths over one input, and how they meet."""

    def __init__(self, meet: Callable[[list[Tensor]], Tensor], *paths: nn.Module) -> None:
        super().__init__()
        self.meet, self.paths = meet, nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        return self.meet([path(x) for path in self.paths])


def cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, 1)


def add(parts: list[Tensor]) -> Tensor:
    return parts[0] + parts[1]


def view_of(model: nn.Module, size: int = 32) -> GraphView:
    captured = capture(model, torch.zeros(1, 3, size, size))
    return GraphView(captured, probe(captured))


def regions_of(model: nn.Module) -> tuple[GraphView, tuple[Region, ...]]:
    view = view_of(model)
    output: Any = next(n for n in view.nodes.values() if n.op == "output")
    return view, find_regions(view, output.args[0].name).regions


def segments_of(model: nn.Module) -> tuple[GraphView, list[Segment]]:
    view, regions = regions_of(model)
    return view, read_segments(view, regions)[0]
