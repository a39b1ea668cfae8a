"""Branches of a sum become one convolution, whatever their block is called, borders included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import head, ready, unit
from reference.fill import fill as fill_in_place
from torch import Tensor, fx, nn

import bu2td
from bu2td.optimization.branches import fold_branches
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.kernels import FusedConv2d
from bu2td.optimization.simplify import Shapes

C = 12


def normed(*args: Any, **kwargs: Any) -> nn.Sequential:
    conv = nn.Conv2d(*args, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


class Sum(nn.Module):
    """act of the sum of branches, written in one of several ways."""

    def __init__(self, *branches: nn.Module, way: str = "plus") -> None:
        super().__init__()
        self.branches, self.way, self.act = nn.ModuleList(branches), way, nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sum":
            return self.act(sum(branch(x) for branch in self.branches))
        y = self.branches[0](x)
        for branch in list(self.branches)[1:]:
            if self.way == "in place":
                y += branch(x)
            elif self.way == "torch.add":
                y = torch.add(y, branch(x))
            else:
                y = branch(x) + y
        return self.act(y)


def dilated(dilation: int) -> nn.Module:
    return normed(C, C, 3, padding=dilation, dilation=dilation, groups=C, bias=False)


#: Blocks of C channels, and the convolutions that are left of one.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "3x3, 1x1, norm": (lambda: Sum(normed(C, C, 3, padding=1), normed(C, C, 1), nn.BatchNorm2d(C)), 1),
    "3x3, 1x3, 3x1": (
        lambda: Sum(
            normed(C, C, 3, padding=1), normed(C, C, (1, 3), padding=(0, 1)), normed(C, C, (3, 1), padding=(1, 0))
        ),
        1,
    ),
    "1x3, 3x1, identity": (
        lambda: Sum(normed(C, C, (1, 3), padding=(0, 1)), normed(C, C, (3, 1), padding=(1, 0)), nn.Identity()), 1,
    ),
    "identity": (lambda: Sum(nn.Conv2d(C, C, 3, padding=1), nn.Identity(), way="sum"), 1),
    "two of a kind": (lambda: Sum(normed(C, C, 5, padding=2), normed(C, C, 5, padding=2), way="in place"), 1),
    "five, grouped": (
        lambda: Sum(
            *(normed(C, C, 3, padding=1, groups=3) for _ in range(3)), nn.BatchNorm2d(C), normed(C, C, 1, groups=C),
            way="sum",
        ),
        1,
    ),
    "dilated in a large kernel": (
        lambda: Sum(normed(C, C, 9, padding=4, groups=C), dilated(1), dilated(2), dilated(4), way="torch.add"), 1,
    ),
    "dilated alone": (lambda: Sum(normed(C, C, 3, padding=2, dilation=2), normed(C, C, 1), nn.Identity()), 1),
    "same": (lambda: Sum(nn.Conv2d(C, C, 7, padding="same"), nn.Conv2d(C, C, 3, padding="same", bias=False)), 1),
    "norms on both sides of a 1x1": (
        lambda: Sum(
            nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)), normed(C, C, 3, padding=1)
        ),
        1,
    ),
}  # fmt: skip


def model(block: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(unit(3, C, 3, 2), block(), block(), unit(C, 2 * C, 3, 2), unit(2 * C, 2 * C), head(2 * C))


def network(block: Callable[[], nn.Module]) -> Any:
    return converted(model(block))


def converted(model: nn.Module) -> Any:
    td = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 24, 24), seed=0, inherit="none")
    fill_in_place(td)
    return td.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def convs(model: nn.Module) -> int:
    return sum(isinstance(module, FusedConv2d | nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_that_nobody_named_are_one_convolution(name: str) -> None:
    block, kept = BLOCKS[name]
    part, expected, images = folded(block())
    assert convs(part) == kept
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)
    td = network(block)
    fast = bu2td.optimize(td)
    assert fast.optimization is not None
    made, seen = fast.optimization.counts()["branches"]
    assert made == seen >= 2
    for size in ((24, 24), (17, 30)):
        images = torch.rand(2, 3, *size)
        with torch.inference_mode():
            assert relative(fast(images), td(images)) < 1e-5
            for found, expected in zip(fast.features(images), td.features(images), strict=True):
                assert relative(found, expected) < 1e-5


def folded(block: nn.Module, size: tuple[int, ...] = (9, 13), force: bool | None = None) -> tuple[Any, Any, Tensor]:
    """A block alone, as it is and folded, and images for it."""
    torch.manual_seed(0)
    part = fx.symbolic_trace(ready(block))
    images = torch.randn(2, C, *size)
    expected, rules = part(images), {} if force is None else {"branches": "always" if force else "never"}
    holder: Any = nn.Module()
    holder.r1 = part
    shapes = Shapes(part, "r1.")
    shapes.run(images)
    fold_branches(holder, shapes.found, Chooser("inference", "cpu", rules=rules))
    return part, expected.detach(), images


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_borders_and_strides_are_kept(mode: str, stride: int) -> None:
    kinds = [(5, 2), (3, 1), (1, 0)]
    block = Sum(*(normed(C, 2 * C, k, padding=p, stride=stride, padding_mode=mode, groups=2) for k, p in kinds))
    part, expected, images = folded(block)
    (conv,) = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert (conv.kernel_size, conv.padding, conv.stride) == ((5, 5), (2, 2), (stride, stride))
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)


def test_kernels_without_padding_are_laid_onto_each_other_where_they_end_alike() -> None:
    block = Sum(nn.Conv2d(C, C, 3), nn.Conv2d(C, C, 5, padding=1), nn.Conv2d(C, C, (3, 5), padding=(0, 1)))
    part, expected, images = folded(block)
    (conv,) = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert (conv.kernel_size, conv.padding) == ((5, 5), (1, 1))
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)


def shifted() -> nn.Module:
    """A norm's shift in front of a kernel that pads is no constant at the border."""
    return Sum(nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, C, 3, padding=1)), nn.Conv2d(C, C, 3, padding=1))


class Overwritten(nn.Module):
    """The map that one branch reads is another one when the other reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        first = self.a(x)
        return first + self.b(x.relu_())


class Read(nn.Module):
    """Somebody else reads one of the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        return torch.cat([first, first + self.b(x)], 1)


def hooked() -> nn.Module:
    block = Sum(nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1))
    block.branches[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return block


LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "a shift in front of a border": shifted,
    "an overwritten map": Overwritten,
    "a branch that others read": Read,
    "a hook": hooked,
    "other borders": lambda: Sum(
        nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 5, padding=2, padding_mode="reflect")
    ),
    "other groups": lambda: Sum(nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1, groups=2)),
    "an activation on a branch": lambda: Sum(
        nn.Conv2d(C, C, 3, padding=1), nn.Sequential(nn.Conv2d(C, C, 1), nn.ReLU())
    ),
    "statistics of the image": lambda: Sum(
        nn.Conv2d(C, C, 3, padding=1), nn.Sequential(nn.Conv2d(C, C, 1), nn.GroupNorm(2, C))
    ),
    "another result, broadcast": lambda: Sum(nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, 1, 1)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_no_parallel_linear_branch_is_left_alone(name: str) -> None:
    torch.manual_seed(0)
    block = LEFT_ALONE[name]()
    before = convs(block)
    part, expected, images = folded(block, force=True)
    assert convs(part) == before
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)


def test_a_larger_kernel_is_made_only_where_it_costs_less_or_is_forced() -> None:
    def wide() -> nn.Module:
        return Sum(nn.Conv2d(C, C, 3, padding=4, dilation=4), nn.Conv2d(C, C, 3, padding=3, dilation=3))

    assert convs(folded(wide())[0]) == 2
    part, expected, images = folded(wide(), force=True)
    (conv,) = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert conv.kernel_size == (9, 9)
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)


def test_groups_of_branches_of_other_maps_are_folded_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (normed(C, C, k, padding=k // 2) for k in (3, 1, 1))
            self.d, self.e, self.act = normed(C, C, 3, padding=1), normed(C, C, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.c(x))
            return self.a(x) + (self.d(y) + self.b(x)) + self.e(y) + 0

    part, expected, images = folded(Two())
    assert convs(part) == 3
    torch.testing.assert_close(part(images), expected, rtol=1e-5, atol=1e-5)


def test_training_keeps_every_branch_and_random_numbers_are_left_alone() -> None:
    td = network(BLOCKS["3x3, 1x1, norm"][0])
    lean = bu2td.optimize(td, "training")
    assert list(lean.state_dict()) == list(td.state_dict())
    state = torch.get_rng_state()
    bu2td.optimize(td)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folded_network_is_saved_and_loaded(tmp_path: Path) -> None:
    built = model(BLOCKS["five, grouped"][0])
    fast = bu2td.optimize(converted(built))
    bu2td.save(fast, tmp_path / "fast.pt")
    again = bu2td.load(tmp_path / "fast.pt", model=built)
    assert again.optimization == fast.optimization
    images = torch.rand(1, 3, 24, 24)
    assert torch.equal(again.eval()(images), fast(images))


def test_up_blocks_fold_through_their_upsampling() -> None:
    """A strided block's pointwise branch runs at low resolution, its other one over the upsampled map."""

    def strided(inputs: int, outputs: int) -> nn.Module:
        kernels = (
            normed(inputs, outputs, 3, 2, 1),
            normed(inputs, outputs, 1, 2),
            normed(inputs, outputs, 5, 2, 2),
        )
        return Sum(*kernels)

    last = Sum(normed(4 * C, 4 * C, 1), normed(4 * C, 4 * C, 3, padding=1))
    td = converted(nn.Sequential(unit(3, C), strided(C, 2 * C), strided(2 * C, 4 * C), last, head(4 * C)))
    fast = bu2td.optimize(td, force={"*_up.*branches": True})
    assert fast.optimization is not None
    sites = {r.site.partition(".")[0] for r in fast.optimization.made if r.rule == "branches" and r.chosen}
    assert sites == {"r4", "r2_up"}
    assert [r.site for r in fast.optimization.made if r.rule == "upsample_conv" and r.chosen]
    images = torch.rand(2, 3, 19, 26)
    with torch.inference_mode():
        assert relative(fast(images), td(images)) < 1e-5
