"""Intervals against gradients: in a network with positive weights every dependence is a nonzero gradient."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import bu2td
from bu2td.capture.trace import capture
from bu2td.erf.intervals import intervals
from bu2td.erf.subject import Subject, subject
from bu2td.errors import ConverterError
from bu2td.ir import Dim
from bu2td.ops import Role
from bu2td.probe.measure import probe


def looked_at(model: nn.Module, size: tuple[int, int], channels: int = 2) -> Subject:
    captured = capture(model, torch.zeros(2, channels, *size))
    return Subject(captured.source, captured.graph_module, probe(captured), {}, captured.image_shape)


def positive(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 1.0)
    return model


class _Values(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def of(self, images: Tensor) -> dict[str, Any]:
        self.run(images)
        return {node.name: value for node, value in self.env.items()}


def measured(value: Tensor, axis: int, images: Tensor, along: int) -> list[tuple[int, int] | None]:
    """First and last row (or column) of the image with a gradient, for every position along an axis."""
    found: list[tuple[int, int] | None] = []
    for part in value.unbind(axis):
        (gradient,) = torch.autograd.grad(part.sum(), images, retain_graph=True, allow_unused=True)
        if gradient is None:
            found.append(None)
            continue
        others = [i for i in range(4) if i != along]
        touched = gradient.abs().sum(others).nonzero().flatten().tolist()
        found.append((touched[0], touched[-1]) if touched else None)
    return found


def check(seen: Subject, skip: tuple[str, ...] = ()) -> int:
    """Compare every value with rows or columns; returns how many there were."""
    network = seen.runnable(torch.device("cpu"), torch.float64)
    shape = seen.image_shape
    images = torch.rand((1, *shape[1:]), dtype=torch.float64).add_(0.1).requires_grad_()
    values = _Values(network).of(images)
    found = intervals(seen.graph_module, seen.dims, shape, borders=True)
    assert not found.unknown
    count = 0
    for along, kind in ((2, "height"), (3, "width")):
        for name, line in found.lines[kind].items():
            axis = [d.kind for d in seen.dims[name]].index(kind)
            if name in skip or not values[name].requires_grad:
                continue
            theory = [(a, b) if a <= b else None for a, b in zip(line.lo.tolist(), line.hi.tolist(), strict=True)]
            assert theory == measured(values[name], axis, images, along), (name, kind)
            count += 1
    assert count
    return count


# --- one operation at a time --------------------------------------------------------------------------


class Op(nn.Module):
    """A convolution in front, so that the field is no single pixel, and one operation behind it."""

    def __init__(self, call: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, 2, 1)
        self.parts = nn.ModuleList(parts)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for part in self.parts:
            x = part(x)
        return self.call(x)


class Even(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]


def same(x: Tensor) -> Tensor:
    return x


def space_to_depth(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * 4, h // 2, w // 2)


def focus(x: Tensor) -> Tensor:
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def half_way(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    b = F.avg_pool2d(F.pad(b, (0, 2, 0, 2)), 3, 1)
    return torch.cat([a, b], 1)


def shuffled(x: Tensor) -> Tensor:
    x = half_way(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return x[:, : c // 2]


def tokens(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(n, c, h, w)


def gated(x: Tensor) -> Tensor:
    return x * (1 + 0 * x.mean((2, 3), keepdim=True).detach())


OPS: dict[str, Callable[[], nn.Module]] = {
    "conv7s3": lambda: Op(same, nn.Conv2d(4, 3, 7, 3, 2)),
    "even": lambda: Op(same, nn.Conv2d(4, 3, 4, 2, 1), nn.Conv2d(3, 3, 2)),
    "dilated": lambda: Op(same, nn.Conv2d(4, 3, 3, 1, 2, dilation=3)),
    "oblong": lambda: Op(same, nn.Conv2d(4, 3, (1, 5), (2, 1), (0, 2))),
    "same": lambda: Op(same, nn.Conv2d(4, 3, 4, padding="same", dilation=2)),
    "valid": lambda: Op(same, nn.Conv2d(4, 3, 5, padding="valid")),
    "reflect": lambda: Op(same, nn.Conv2d(4, 3, 5, 2, 2, padding_mode="reflect")),
    "circular": lambda: Op(same, nn.Conv2d(4, 3, 3, 1, 1, padding_mode="circular")),
    "far padding": lambda: Op(same, nn.Conv2d(4, 3, 1, 1, 2)),
    "strided 1x1": lambda: Op(same, nn.Conv2d(4, 3, 1, 2)),
    "groups": lambda: Op(half_way, nn.Conv2d(4, 4, 3, 1, 1)),
    "ceil": lambda: Op(same, nn.AvgPool2d(3, 2, ceil_mode=True)),
    "ceil, padded": lambda: Op(same, nn.AvgPool2d(2, 2, 1, ceil_mode=True)),
    "default stride": lambda: Op(same, nn.AvgPool2d(3)),
    "large window": lambda: Op(same, nn.Conv2d(4, 2, 31, 1, 15)),
    "asymmetric": lambda: Op(lambda x: F.avg_pool2d(F.pad(x, (0, 1, 2, 0)), 3, 2)),
    "negative pad": lambda: Op(lambda x: F.pad(x, (-1, 2, 1, -2))),
    "reflect pad": lambda: Op(lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "replicate": lambda: Op(same, nn.ReplicationPad2d(2), nn.Conv2d(4, 2, 3)),
    "zero pad": lambda: Op(same, nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(4, 2, 2)),
    "crop": lambda: Op(lambda x: x[:, :, 1:-2, 3:]),
    "stride by slice": lambda: Op(lambda x: x[:, :, 1::2, ::3]),
    "focus": lambda: Op(focus),
    "space to depth": lambda: Op(space_to_depth),
    "nearest": lambda: Op(lambda x: F.interpolate(x, scale_factor=2)),
    "nearest to size": lambda: Op(lambda x: F.interpolate(x, size=(x.shape[-2] * 2 - 1, x.shape[-1] + 3))),
    "exact": lambda: Op(lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact")),
    "bilinear": lambda: Op(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear down": lambda: Op(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear")),
    "corners": lambda: Op(lambda x: F.interpolate(x, scale_factor=3, mode="bilinear", align_corners=True)),
    "antialias": lambda: Op(lambda x: F.interpolate(x, scale_factor=0.4, mode="bilinear", antialias=True)),
    "bicubic": lambda: Op(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "area": lambda: Op(lambda x: F.interpolate(x, size=(x.shape[-2] * 2 // 3, x.shape[-1] // 2), mode="area")),
    "upsample module": lambda: Op(same, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
    "transposed": lambda: Op(same, nn.ConvTranspose2d(4, 3, 3, 2, 1, 1)),
    "transposed, gaps": lambda: Op(same, nn.ConvTranspose2d(4, 3, 2, 3, dilation=2)),
    "unshuffle": lambda: Op(same, Even(), nn.PixelUnshuffle(2), nn.Conv2d(16, 16, 3, groups=16)),
    "shuffle": lambda: Op(same, nn.PixelShuffle(2)),
    "half way": lambda: Op(half_way),
    "channel shuffle": lambda: Op(shuffled),
    "tokens": lambda: Op(tokens),
    "channels last": lambda: Op(lambda x: x.permute(0, 2, 3, 1)[:, 1:, ::2].permute(0, 3, 1, 2)),
    "transposed layout": lambda: Op(lambda x: F.avg_pool2d(x.transpose(2, 3), (3, 1), (2, 1))),
    "two sizes": lambda: Op(lambda x: x + F.interpolate(F.avg_pool2d(x, 3, 3), size=x.shape[-2:])),
    "bins": lambda: Op(lambda x: F.adaptive_avg_pool2d(x, (x.shape[-2] * 2 // 3, x.shape[-1] // 2))),
    "norm over channels": lambda: Op(lambda x: half_way(x).mean(1, keepdim=True)),
}


@pytest.mark.parametrize("name", OPS)
def test_operation(name: str) -> None:
    torch.manual_seed(0)
    check(looked_at(positive(OPS[name]()), (22, 27)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_operation_at_another_size(name: str) -> None:
    torch.manual_seed(0)
    check(looked_at(positive(OPS[name]()), (31, 24)))


# --- random networks ----------------------------------------------------------------------------------


class Random(nn.Module):
    """Random operations in a chain, some of them on two branches that are cropped to one size and joined."""

    def __init__(self, seed: int, length: int = 5) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.stem = nn.Conv2d(2, 4, 3, 1, 1)
        self.steps = nn.ModuleList(nn.ModuleList(self._branches()) for _ in range(length))
        self.joins = [self.random.choice(["add", "cat"]) for _ in range(length)]
        self.narrow = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(length))

    def _branches(self) -> list[nn.Module]:
        return [self._operation() for _ in range(self.random.choice([1, 1, 2]))]

    def _operation(self) -> nn.Module:
        pick = self.random.choice
        kernel, stride = pick([1, 2, 3, 4, 5]), pick([1, 1, 2])
        window = max(kernel, 2)
        kinds: list[Callable[[], nn.Module]] = [
            lambda: nn.Conv2d(4, 4, kernel, stride, pick([0, kernel // 2]), groups=pick([1, 2, 4])),
            lambda: nn.Conv2d(4, 4, 3, stride, 2, dilation=2, padding_mode=pick(["zeros", "replicate"])),
            lambda: nn.AvgPool2d(window, stride, pick([0, window // 2]), ceil_mode=pick([True, False])),
            lambda: nn.Upsample(scale_factor=2, mode=pick(["nearest", "bilinear"])),
            lambda: nn.ConvTranspose2d(4, 4, max(kernel, stride), stride, groups=pick([1, 2])),
            lambda: nn.ZeroPad2d((pick([0, 1]), pick([0, 1, 2]), pick([0, 2]), pick([0, 1]))),
        ]
        return pick(kinds)()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, branches in enumerate(self.steps):
            outs = [branch(x) for branch in branches]
            x = outs[0]
            if len(outs) == 2:
                other = F.interpolate(outs[1], size=x.shape[-2:])
                x = x + other if self.joins[i] == "add" else self.narrow[i](torch.cat([x, other], 1))
        return x


SEEDS = [*range(16), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(16, 120))]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_network(seed: int) -> None:
    torch.manual_seed(seed)
    model = positive(Random(seed))
    size = (24 + seed % 7, 33 - seed % 5)
    with torch.no_grad():
        model(torch.zeros(1, 2, *size))
    check(looked_at(model, size))


@pytest.mark.parametrize("seed", range(8))
def test_virtual_canvas_agrees_with_a_large_image(seed: int) -> None:
    """What is read off the virtual canvas is what the middle of a real image has, wherever sizes divide."""
    seen = looked_at(Random(seed), (960, 960))
    virtual = intervals(seen.graph_module, seen.dims, seen.image_shape)
    real = intervals(seen.graph_module, seen.dims, seen.image_shape, borders=True)
    for name, line in virtual.lines["height"].items():
        large, small = ((a.hi - a.lo) for a in (line, real.lines["height"][name]))
        middle = [a[len(a) // 2 - 8 : len(a) // 2 + 8] for a in (large, small)]
        assert max(middle[0]) == max(middle[1]), name


@pytest.mark.parametrize("name", ["tokens", "windows of tokens", "norm of tokens"])
def test_tokens_on_canvases_of_one_axis(name: str) -> None:
    """Tokens are counted on canvases that are long along one axis; the middle of a large image has the same."""

    def windows_of(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = x.mean(1, keepdim=True).expand(-1, 16, -1)
        return x.reshape(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)

    def norm_of(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = F.layer_norm(half_way(x).flatten(2).transpose(1, 2), (c,))
        return x.transpose(1, 2).reshape(n, c, h, w)

    call = {"tokens": tokens, "windows of tokens": windows_of, "norm of tokens": norm_of}[name]
    seen = looked_at(positive(nn.Sequential(Op(call), nn.Conv2d(4, 3, 3, 2, 1))), (32, 48))
    assert any(getattr(d, "kind", "") in ("token", "mixed") for value in seen.dims.values() for d in value or ())
    if name != "norm of tokens":  # whose gradients cancel
        check(seen)
    virtual = intervals(seen.graph_module, seen.dims, seen.image_shape)
    real = intervals(seen.graph_module, seen.dims, (2, 2, 480, 480), borders=True)
    last = next(n.name for n in reversed(seen.graph_module.graph.nodes) if n.op == "call_module")
    for kind in ("height", "width"):
        large, small = (found.lines[kind][last] for found in (virtual, real))
        sizes = [a.hi - a.lo for a in (large, small)]
        middle = [a[len(a) // 2 - 8 : len(a) // 2 + 8] for a in sizes]
        assert middle[0].tolist() == middle[1].tolist()


# --- rules --------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x[..., ::2, ::2])


def test_rule_of_a_converter_of_ones_own() -> None:
    class OddConverter(bu2td.Converter):
        role = Role.POOL

        def interval(self, site: bu2td.Site, fields: Any) -> Any:
            field = fields[site.source()]
            return field.part(2, slice(None, None, 2)).part(3, slice(None, None, 2))

    model = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), Odd(), nn.Conv2d(3, 3, 3))
    bu2td.register_converter(Odd)(OddConverter)
    try:
        check(looked_at(positive(model), (33, 29)))
        OddConverter.interval = lambda self, site, fields: fields[site.source()]  # type: ignore[method-assign]
        with pytest.raises(ConverterError, match="interval rule of Odd"):
            check(looked_at(model, (33, 29)))
    finally:
        bu2td.unregister_converter(Odd)


# --- top-down -----------------------------------------------------------------------------------------


def chain() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((2, 3, 4, 5)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


@pytest.mark.parametrize("pyramid", ["gaussian", "strided", "average"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transpose"])
def test_top_down(pyramid: str, upsample: str) -> None:
    images = torch.zeros(2, 2, 25, 31)
    td = bu2td.convert(chain(), "td", example_inputs=images, pyramid=pyramid, upsample=upsample, seed=0)
    check(subject(positive(td)))


def test_dims_have_canvas_sizes() -> None:
    seen = looked_at(nn.Sequential(nn.Conv2d(2, 3, 3, 2)), (20, 20))
    found = intervals(seen.graph_module, seen.dims, seen.image_shape)
    name = next(n for n in found.dims if n not in ("x", "output"))
    assert found.canvas == (6720, 6720)
    assert found.dims[name][2] == Dim("height", 3359, seen.dims[name][2].stride)
    assert seen.dims[name][2].size == 9
