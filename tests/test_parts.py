"""Networks that split their maps and join the parts: written by name or in a loop, in one list or by and by."""

from typing import Any

import pytest
import torch
from converted import converted
from nets import Block, head, unit
from torch import Tensor, nn

import bu2td


class Parts(nn.Module):
    """Splits its map, adds each part to what became of the one before, and joins all (Res2Net)."""

    def __init__(self, width: int, split: Any) -> None:
        super().__init__()
        self.split, self.close = split, unit(width, width, 1)
        self.convs = nn.ModuleList(unit(width // 4, width // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.split(x)
        done = [first]
        for conv, part in zip(self.convs, others, strict=True):
            done.append(conv(part + done[-1]))
        return self.close(torch.cat(done, 1)) + x


@pytest.mark.parametrize(
    "split",
    [
        lambda x: list(x.chunk(4, 1)),
        lambda x: list(torch.split(x, x.shape[1] // 4, 1)),
        lambda x: [part for part in x.split([x.shape[1] // 4] * 4, dim=1)],  # noqa: C416
    ],
    ids=["chunk", "split", "sizes"],
)
def test_parts_in_a_loop_are_parts_by_name(split: Any) -> None:
    def by_name(x: Tensor) -> list[Tensor]:
        a, b, c, d = x.chunk(4, 1)
        return [a, b, c, d]

    images = torch.rand(2, 3, 32, 32)
    found, expected = (
        bu2td.convert(
            nn.Sequential(
                unit(3, 8), unit(8, 16, 3, 2), Parts(16, how), unit(16, 24, 3, 2), Parts(24, how), head(24)
            ),
            "uni",
            example_inputs=images,
            seed=0,
            max_macs_ratio=None,
        ).eval()
        for how in (split, by_name)
    )
    assert found.plan.widths == expected.plan.widths
    torch.testing.assert_close(found(images), expected(images))


def test_the_parts_of_a_shape_in_a_loop() -> None:
    class Shaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], -1).reshape(list(x.size())) * 2

    model = nn.Sequential(unit(3, 8), Shaped(), unit(8, 16, 3, 2), unit(16, 24, 3, 2), head(24))
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None)
    assert network(torch.rand(2, 3, 48, 40)).shape == (2, 10)


@pytest.mark.parametrize("by_list", [False, True])
def test_what_expands_splits_and_aggregates_is_one_block(by_list: bool) -> None:
    class Partial(nn.Module):
        """YOLO's cross-stage block of two convolutions."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.a, self.inner = unit(inputs, outputs, 1), Block(outputs // 2, outputs // 2)
            self.b = unit(3 * outputs // 2, outputs, 1)

        def forward(self, x: Tensor) -> Tensor:
            if by_list:
                parts = list(self.a(x).chunk(2, 1))
                parts.append(self.inner(parts[-1]))
                return self.b(torch.cat(parts, 1))
            left, right = self.a(x).chunk(2, 1)
            return self.b(torch.cat([left, right, self.inner(right)], 1))

    model = nn.Sequential(unit(3, 8), unit(8, 8, 3, 2), Partial(8, 8), unit(8, 16, 3, 2), Partial(16, 16), head(16))
    analysis = bu2td.analyze(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert [[b.name for b in level.blocks] for level in analysis.levels] == [["3", "4"], ["2"], []]
    plan = converted(model, "uni", example_inputs=torch.zeros(1, 3, 32, 32)).plan
    assert (plan.widths, plan.relaxations) == ((8, 8, 8), ())


def test_a_classifier_behind_a_grouped_unit_is_the_classifier() -> None:
    model = nn.Sequential(
        unit(3, 12),
        Block(12, 8, 2),
        unit(8, 8, 3, 2, groups=4),
        nn.Conv2d(8, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    assert converted(model, example_inputs=torch.zeros(1, 3, 32, 32)).plan.widths == (8, 8, 12)


class Dense(nn.Module):
    """Appends ``count`` times; by ever longer concats, or by one list."""

    def __init__(self, inputs: int, growth: int, count: int, progressive: bool) -> None:
        super().__init__()
        self.progressive = progressive
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + i * growth), nn.ReLU(), nn.Conv2d(inputs + i * growth, growth, 3, padding=1)
            )
            for i in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            if self.progressive:
                x = torch.cat([x, layer(x)], 1)
            else:
                parts.append(layer(torch.cat(parts, 1)))
        return x if self.progressive else torch.cat(parts, 1)


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_a_dense_block_by_longer_and_longer_concats(arrangement: str) -> None:
    def model(progressive: bool) -> nn.Module:
        def transition(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1), nn.AvgPool2d(2))

        blocks = [Dense(i, 4, 3, progressive) for i in (8, 10, 11)]
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), blocks[0], transition(20, 10), blocks[1], transition(22, 11), blocks[2],
            nn.BatchNorm2d(23), nn.ReLU(), head(23),
        )  # fmt: skip

    images = torch.rand(2, 3, 32, 32)
    found, expected = (
        bu2td.convert(model(p), arrangement, example_inputs=images, seed=0, max_macs_ratio=None).eval()
        for p in (True, False)
    )
    assert found.plan.rows() == expected.plan.rows()
    torch.testing.assert_close(found(images), expected(images))


def test_a_concat_of_branches_is_a_value_of_its_own() -> None:
    """What appends to it reads it whole: the two blocks stay apart."""

    class Branches(nn.Module):
        def __init__(self, inputs: int, grows: bool) -> None:
            super().__init__()
            self.a, self.b, self.grows = unit(inputs, 8, 3, 1 if grows else 2), unit(inputs, 8, 3, 2), grows

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x if self.grows else self.b(x), self.a(x)], 1)

    model = nn.Sequential(unit(3, 8), Branches(8, False), Branches(16, True), Branches(24, False), head(16))
    analysis = bu2td.analyze(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert [len(level.blocks) for level in analysis.levels] == [1, 2, 0]
