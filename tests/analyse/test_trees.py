"""A merge is as wide as its level, not as a concat inside of the first block."""

import pytest
import torch
from torch import Tensor, nn

from tests.nets import Block, head, unit
from tests.working import shape_of, works


class Tree(nn.Module):
    """Deep layer aggregation as students write it: a root reads all nodes, the first of which strides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.sub = Block(inputs, outputs, 2), Block(inputs, outputs, 2)
        self.left, self.right = Block(outputs, outputs), Block(outputs, outputs)
        self.root = unit(4 * outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [self.first(x), self.sub(x)]
        nodes.append(self.left(nodes[-1]))
        nodes.append(self.right(nodes[-1]))
        return self.root(torch.cat(nodes, 1))


class Branches(nn.Module):
    """Strided branches, and a convolution of their concat."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(unit(inputs, outputs, k, 2) for k in (1, 3, 5))
        self.narrow = unit(3 * outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.cat([branch(x) for branch in self.branches], 1))


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize("block", [Tree, Branches])
def test_what_narrows_a_concat_belongs_to_it(block: type[nn.Module], arrangement: str) -> None:
    model = nn.Sequential(unit(3, 8), block(8, 16), Block(16, 16), block(16, 32), head(32))
    widths = {"td": (32, 16), "uni": (16, 16), "rev": (16, 32)}[arrangement]
    blocks = (2, 1) if arrangement == "rev" else (1, 2)
    found = shape_of(works(model, arrangement))
    assert [found[4], found[2]] == [(w, w, n) for w, n in zip(widths, blocks, strict=True)]


def test_a_pool_behind_makes_it_a_transition() -> None:
    model = nn.Sequential(unit(3, 8), Branches(8, 16), nn.MaxPool2d(2), Block(16, 32), head(32))
    assert [level.merge_width for level in works(model).plan.levels] == [16, 48, 8]
