"""Blocks, stems and heads of random networks; see `kit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from kit import GATES, Asymmetric, Block, Kit, LayerNorm2d, Plain, Residual, dropping
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GATED = ("se", "se_linear", "eca", "spatial", "excursion", "self", "scale")


class Basic(Residual):
    choices = {"gate": GATED, "kernel": (5, 1), "groups": (2,), "dilation": (2,), "strided": (2,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: int = 3, groups: int = 1, dilation: int = 1,
              strided: int = 1) -> None:  # fmt: skip
        strides = (1, stride) if strided == 2 else (stride, 1)
        self.a = self.first(i, o, 3, strides[0], groups=groups)
        self.b = self.last(o, o, kernel if strides[1] == 1 else 3, strides[1], groups=groups, dilation=dilation)

    def main(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Bottleneck(Residual):
    """1x1, 3x3, 1x1; grouped (ResNeXt), strided early, with several scales (Res2Net)."""

    choices = {
        "gate": GATED,
        "groups": (2, 4),
        "early": (True,),
        "inner": (5, 8),
        "scales": (2, 4),
        "pooled": (True,),
    }

    def build(self, kit: Kit, i: int, o: int, stride: int, groups: int = 1, early: bool = False, inner: int = 0,
              scales: int = 0, pooled: bool = False) -> None:  # fmt: skip
        inner = inner or max(o // 2, 1)
        self.scales = scales if stride == 1 else 0
        if self.scales:
            inner = max(inner // scales, 1) * scales
        self.a = self.first(i, inner, 1, stride if early else 1)
        middle = 1 if early else stride
        self.pool: nn.Module = nn.Identity()
        if pooled and middle > 1:
            self.pool, middle = nn.AvgPool2d(3, middle, 1), 1
        if self.scales:
            part = inner // scales
            self.b = nn.ModuleList(kit.unit(part, part, 3) for _ in range(scales - 1))
        else:
            self.b = kit.unit(inner, inner, 3, middle, groups=groups)
        self.c = self.last(inner, o, 1)

    def main(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if not self.scales:
            return self.c(self.pool(self.b(x)))
        done, y = [], None
        parts = (
            torch.chunk(x, self.scales, 1) if self.kit.functional else torch.split(x, x.shape[1] // self.scales, 1)
        )
        for i, conv in enumerate(self.b):  # type: ignore[arg-type]
            y = conv(parts[i] if y is None else y + parts[i])
            done.append(y)
        return self.c(self.kit.join([*done, parts[self.scales - 1]]))


class Inverted(Block):
    """Expand, depthwise, project; the sum only where nothing changes; linear at the end."""

    choices = {"gate": ("se", "se_linear", "eca"), "expand": (1, 2, 6), "kernel": (5, 7), "fused": (True,),
               "mixed": (True,)}  # fmt: skip

    def build(self, kit: Kit, i: int, o: int, stride: int, expand: int = 4, kernel: int = 3, fused: bool = False,
              mixed: bool = False, gate: str = "") -> None:  # fmt: skip
        inner = i * expand
        self.adds, fused = i == o and stride == 1, fused and expand > 1
        self.a = nn.Identity() if expand == 1 else kit.unit(i, inner, 3, stride) if fused else kit.unit(i, inner, 1)
        if fused:
            self.b: nn.Module = nn.Identity()
        elif mixed and inner % 2 == 0:
            self.b = Mixed(kit, inner, stride)
        else:
            self.b = kit.unit(inner, inner, kernel, stride, groups=inner)
        self.gate = GATES[gate](kit, inner)
        self.c = kit.unit(inner, o, 1, act=kit.preact)
        self.drop = dropping(kit)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.gate(self.b(self.a(x))))
        return self.kit.sum(self.drop(y), x) if self.adds else y


class Mixed(nn.Module):
    """Depthwise convolutions of two kernels, half of the channels each."""

    def __init__(self, kit: Kit, width: int, stride: int) -> None:
        super().__init__()
        self.kit, half = kit, width // 2
        self.a = kit.conv(half, half, 3, stride, groups=half)
        self.b = kit.conv(half, half, 5, stride, groups=half)
        self.norm, self.act = kit.normed(width), kit.acting(width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return self.act(self.norm(self.kit.join([self.a(a), self.b(b)])))


class Separable(Block):
    """Depthwise, pointwise (MobileNet)."""

    choices = {"kernel": (5,), "middle": (True,), "dilation": (2,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: int = 3, middle: bool = False,
              dilation: int = 1) -> None:  # fmt: skip
        d = dilation if stride == 1 else 1
        self.a = (
            kit.conv(i, i, kernel, stride, i, d) if middle else kit.unit(i, i, kernel, stride, groups=i, dilation=d)
        )
        self.b = kit.unit(i, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Dense(Block):
    """Layers that append to what they read; an optional 1x1 bottleneck in each, or one at the end."""

    choices = {"layers": (1, 3), "growth": (4, 7), "bottleneck": (True,), "closing": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, layers: int = 2, growth: int = 6,
              bottleneck: bool = False, closing: bool = False) -> None:  # fmt: skip
        self.entry = kit.unit(i, i, 3, stride) if stride > 1 else nn.Identity()
        self.layers = nn.ModuleList()
        for n in range(layers):
            width = i + n * growth
            inner = 2 * growth if bottleneck else width
            first = kit.unit(width, inner, 1) if bottleneck else nn.Identity()
            self.layers.append(nn.Sequential(first, kit.unit(inner, growth, 3)))
        self.width = i + layers * growth
        self.closing = kit.unit(self.width, o, 1) if closing else None
        self.width = o if closing else self.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        features = [x]
        for layer in self.layers:
            if self.kit.functional:
                features.append(layer(self.kit.join(features)))
            else:
                x = self.kit.join([x, layer(x)])
        x = self.kit.join(features) if self.kit.functional else x
        return x if self.closing is None else self.closing(x)


class Fire(Block):
    """Squeeze 1x1, expand by 1x1 and 3x3."""

    choices = {"inner": (4, 9)}

    def build(self, kit: Kit, i: int, o: int, stride: int, inner: int = 6) -> None:
        self.squeeze = kit.unit(i, inner, 1)
        self.a = kit.unit(inner, o // 2, 1, stride)
        self.b = kit.unit(inner, o - o // 2, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return self.kit.join([self.a(x), self.b(x)])


class Inception(Block):
    """1x1, 3x3, double 3x3 or 1x7-7x1, and a pooled branch; a reduction module if it strides."""

    choices = {"asymmetric": (True,), "pool": ("max",), "residual": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, asymmetric: bool = False, pool: str = "average",
              residual: bool = False) -> None:  # fmt: skip
        q = max(o // 4, 1)
        kernels: list[Any] = [(1, 7), (7, 1)] if asymmetric and stride == 1 else [3, 3]
        self.b = nn.Sequential(kit.unit(i, q, 1), kit.unit(q, q, 3, stride))
        self.c = nn.Sequential(kit.unit(i, q, 1), kit.unit(q, q, kernels[0]), kit.unit(q, q, kernels[1], stride))
        pooling = nn.MaxPool2d if pool == "max" or stride > 1 else nn.AvgPool2d
        self.pool, self.a = pooling(3, stride, 1), None
        self.residual = residual and i == o and stride == 1
        if stride == 1:
            self.a = kit.unit(i, o - 3 * q if o > 3 * q else q, 1)
            self.d: nn.Module = kit.unit(i, q, 1)
            self.width = self.a_width(o, q) + 3 * q
        else:
            self.d = nn.Identity()
            self.width = 2 * q + i
        if self.residual:
            self.close = kit.unit(self.width, o, 1, act=False)
            self.width = o

    @staticmethod
    def a_width(o: int, q: int) -> int:
        return o - 3 * q if o > 3 * q else q

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b(x), self.c(x), self.d(self.pool(x))]
        y = self.kit.join(branches if self.a is None else [self.a(x), *branches])
        return F.relu(self.kit.sum(self.close(y), x)) if self.residual else y


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.size()
    x = x.view(b, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


class Shuffle(Block):
    """ShuffleNetV2's unit: half of the channels pass, or both halves come from the whole when it strides."""

    choices = {"kernel": (5,), "how": ("split", "slice", "module")}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: int = 3, how: str = "chunk") -> None:
        self.width = o = o + o % 2
        self.how, self.splits, half = how, stride == 1 and i == o, o // 2
        read = half if self.splits else i
        self.b = nn.Sequential(
            kit.unit(read, half, 1),
            kit.unit(half, half, kernel, stride, act=False, groups=half),
            kit.unit(half, half, 1),
        )
        if not self.splits:
            self.a = nn.Sequential(kit.unit(i, i, kernel, stride, act=False, groups=i), kit.unit(i, half, 1))
        self.mix = nn.ChannelShuffle(2) if how == "module" else lambda x: shuffle(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.splits:
            return self.mix(self.kit.join([self.a(x), self.b(x)]))
        half = self.width // 2
        if self.how == "split":
            a, b = torch.split(x, half, dim=1)
        elif self.how == "slice":
            a, b = x[:, :half], x[:, half:, ...]
        else:
            a, b = x.chunk(2, dim=1)
        return self.mix(self.kit.join([a, self.b(b)]))


class GroupShuffle(Residual):
    """ShuffleNetV1's unit: grouped 1x1, shuffle, depthwise, grouped 1x1."""

    choices = {"groups": (3,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, groups: int = 2) -> None:
        self.groups, inner = groups, groups * max(o // (2 * groups), 1)
        self.a = self.first(i, inner, 1, groups=groups)
        self.b = kit.unit(inner, inner, 3, stride, act=False, groups=inner)
        self.c = self.last(inner, o, 1, groups=groups)

    def main(self, x: Tensor) -> Tensor:
        return self.c(self.b(shuffle(self.a(x), self.groups)))


class CrossStage(Block):
    """Two 1x1 branches, one with residual blocks in it, joined by concat (CSP); or ever more parts joined (C2f)."""

    choices = {"count": (2,), "growing": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, count: int = 1, growing: bool = False) -> None:
        self.growing, inner = growing, max(o // 2, 2)
        self.down = kit.unit(i, o, 3, stride) if stride > 1 else nn.Identity()
        read = o if stride > 1 else i
        self.a = kit.unit(read, 2 * inner if growing else inner, 1)
        self.b = nn.Identity() if growing else kit.unit(read, inner, 1)
        self.blocks = nn.ModuleList(Basic(kit, inner, inner) for _ in range(count))
        self.close = kit.unit((2 + count) * inner if growing else 2 * inner, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        if self.growing:
            first, second = self.a(x).chunk(2, 1)
            parts = [first, second]
            for block in self.blocks:
                parts.append(block(parts[-1]))
            return self.close(self.kit.join(parts))
        y = self.a(x)
        for block in self.blocks:
            y = block(y)
        return self.close(self.kit.join([y, self.b(x)]))


class ConvNeXt(Block):
    """Depthwise 7x7, norm and MLP with the channels last, layer scale; a norm and a 2x2 convolution to stride."""

    choices = {"first": (True,), "scale": (False,), "kernel": (5,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, first: bool = False, scale: bool = True,
              kernel: int = 7) -> None:  # fmt: skip
        self.first = first
        self.entry: nn.Module = nn.Identity()
        if stride > 1 or i != o:
            self.entry = nn.Sequential(LayerNorm2d(i), nn.Conv2d(i, o, stride, stride))
        self.depthwise = nn.Conv2d(o, o, kernel, padding=kernel // 2, groups=o)
        self.norm = LayerNorm2d(o) if first else nn.LayerNorm(o, eps=1e-6)
        linear: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if first else nn.Linear
        self.a, self.b = linear(o, 3 * o), linear(3 * o, o)
        self.gamma = nn.Parameter(1e-6 * torch.ones(o, 1, 1) if first else 1e-6 * torch.ones(o)) if scale else None
        self.drop = dropping(kit)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.entry(x)
        x = self.depthwise(x)
        if not self.first:
            x = x.permute(0, 2, 3, 1)
        x = self.b(F.gelu(self.a(self.norm(x))))
        if self.gamma is not None:
            x = self.gamma * x
        if not self.first:
            x = x.permute(0, 3, 1, 2)
        return shortcut + self.drop(x)


class MetaFormer(Block):
    """A token mixer and an MLP, each in a residual with norm and layer scale (PoolFormer, ConvFormer)."""

    choices = {"mixer": ("separable", "conv", "gated"), "scale": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, mixer: str = "pool", scale: bool = False) -> None:
        self.entry: nn.Module = nn.Identity()
        if stride > 1 or i != o:
            self.entry = nn.Conv2d(i, o, 3, stride, 1)
        self.norm1, self.norm2, self.kind = kit.normed(o), kit.normed(o), mixer
        if mixer == "pool":
            self.mixer: nn.Module = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        elif mixer == "conv":
            self.mixer = nn.Conv2d(o, o, 3, padding=1, groups=o)
        else:
            self.mixer = nn.Conv2d(2 * o, 2 * o, 5, padding=2, groups=2 * o)
            self.expand = nn.Conv2d(o, 2 * o if mixer == "separable" else 4 * o, 1)
            self.project = nn.Conv2d(2 * o, o, 1)
        self.mlp = nn.Sequential(nn.Conv2d(o, 2 * o, 1), nn.GELU(), nn.Conv2d(2 * o, o, 1))
        self.scale1 = GATES["scale" if scale else ""](kit, o)
        self.scale2 = GATES["scale" if scale else ""](kit, o)

    def mixed(self, x: Tensor) -> Tensor:
        if self.kind == "pool":
            return self.mixer(x) - x
        if self.kind == "conv":
            return self.mixer(x)
        x = self.expand(x)
        if self.kind == "separable":
            return self.project(self.mixer(F.silu(x)))
        gate, value = x.chunk(2, dim=1)
        return self.project(self.mixer(value) * F.silu(gate))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        x = x + self.scale1(self.mixed(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Star(Block):
    """Two 1x1 branches multiplied (StarNet), or one convolution that is cut in two (gated linear unit)."""

    choices = {"cut": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, cut: bool = False) -> None:
        self.cut, self.entry = cut, kit.unit(i, o, 3, stride) if stride > 1 or i != o else nn.Identity()
        self.depthwise = nn.Sequential(nn.Conv2d(o, o, 7, padding=3, groups=o), kit.normed(o))
        self.a = nn.Conv2d(o, 4 * o if cut else 2 * o, 1)
        self.b = nn.Conv2d(o, 2 * o, 1) if not cut else None
        self.c = nn.Sequential(nn.Conv2d(2 * o, o, 1), kit.normed(o))
        self.drop = dropping(kit)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        y = self.depthwise(x)
        if self.b is None:
            a, b = self.a(y).chunk(2, dim=1)
            y = a * torch.sigmoid(b)
        else:
            y = F.relu6(self.a(y)) * self.b(y)
        return x + self.drop(self.c(y))


class Ghost(Residual):
    """Half of the features by a convolution, the rest by a cheap depthwise one behind it."""

    choices = {"gate": ("se",), "kernel": (5,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: int = 3) -> None:
        inner = 2 * max(o // 2, 1)
        self.a = GhostUnit(kit, i, inner, kernel, True)
        self.b = kit.conv(inner, inner, 3, stride, inner) if stride > 1 else nn.Identity()
        self.norm = kit.normed(inner) if stride > 1 else nn.Identity()
        self.c = GhostUnit(kit, inner, o, kernel, False)
        self.act = nn.Identity()

    def main(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.b(self.a(x))))


class GhostUnit(nn.Module):
    def __init__(self, kit: Kit, i: int, o: int, kernel: int, act: bool) -> None:
        super().__init__()
        self.kit, self.width, half = kit, o, (o + 1) // 2
        self.a = nn.Sequential(kit.conv(i, half, 1), kit.normed(half), nn.ReLU() if act else nn.Identity())
        self.b = nn.Sequential(kit.conv(half, half, kernel, groups=half), kit.normed(half))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.kit.join([x, self.b(x)])
        return x[:, : self.width] if self.width % 2 else x


class Parallel(Block):
    """Branches that are added: 3x3, 1x1 and a bare norm (RepVGG), or several dilations."""

    choices = {"dilated": (True,), "maximum": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, dilated: bool = False, maximum: bool = False) -> None:
        self.a = nn.Sequential(kit.conv(i, o, 3, stride), kit.normed(o))
        second = kit.conv(i, o, 3, stride, dilation=2) if dilated else kit.conv(i, o, 1, stride)
        self.b = nn.Sequential(second, kit.normed(o))
        self.c = kit.normed(i) if i == o and stride == 1 else None
        self.maximum, self.act = maximum, kit.acting(o)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.maximum(self.a(x), self.b(x)) if self.maximum else self.kit.sum(self.a(x), self.b(x))
        if self.c is not None:
            y = y + self.c(x)
        return self.act(y)


class Aggregate(Block):
    """A run of convolutions that are all joined by concat and reduced by a 1x1 (VoVNet), with input or sum."""

    choices = {"count": (3,), "adds": (True,), "bare": (True,), "gate": ("se", "eca")}

    def build(self, kit: Kit, i: int, o: int, stride: int, count: int = 2, adds: bool = False, bare: bool = False,
              gate: str = "") -> None:  # fmt: skip
        inner = max(o // 2, 3)
        self.bare, self.pool = bare, nn.MaxPool2d(3, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.layers = nn.ModuleList(kit.unit(inner if n else i, inner) for n in range(count))
        self.close = kit.unit(count * inner + (0 if bare else i), o, 1)
        self.gate, self.adds = GATES[gate](kit, o), adds and i == o

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.pool(x)
        parts = [] if self.bare else [x]
        for layer in self.layers:
            y = layer(y)
            parts.append(y)
        y = self.gate(self.close(self.kit.join(parts)))
        return self.kit.sum(y, x) if self.adds else y


class Selective(Block):
    """Two kernels mixed by a softmax over them (selective kernels), or stacked and summed."""

    choices = {"stacked": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, stacked: bool = False) -> None:
        self.a, self.b = kit.unit(i, o, 3, stride), kit.unit(i, o, 5, stride)
        self.stacked, hidden = stacked, max(o // 4, 2)
        self.squeeze, self.weigh = nn.Conv2d(o, hidden, 1), nn.Conv2d(hidden, 2 * o, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        s = self.weigh(F.relu(self.squeeze((a + b).mean((2, 3), keepdim=True))))
        if self.stacked:
            s = s.view(s.shape[0], 2, -1, 1, 1).softmax(dim=1)
            return (torch.stack([a, b], dim=1) * s).sum(dim=1)
        p, q = torch.sigmoid(s).chunk(2, dim=1)
        return a * p + b * q


class Asking(Block):
    """A residual block whose forward asks about its values: shapes, sizes, kinds."""

    choices = {"zeros": ("pad", "cat", "multiple"), "halves": (True,), "by_name": (True,), "checkpointed": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, zeros: str = "", halves: bool = False,
              by_name: bool = False, checkpointed: bool = False) -> None:  # fmt: skip
        self.zeros = zeros if o > i else ""
        self.a, self.b = kit.unit(i, o, 3, stride), nn.Sequential(kit.conv(o, o, 3), kit.normed(o))
        self.project = nn.Sequential(kit.conv(i, o, 1, stride), kit.normed(o)) if i != o or stride > 1 else None
        if self.zeros:
            self.project = None
        self.entry, self.stride, self.halves = i, stride, halves and o % 2 == 0
        self.by_name, self.checkpointed, self.act = by_name, checkpointed, kit.acting(o)

    def forward(self, x: Any) -> Any:
        if x.shape[1] != self.entry or x.dim() != 4 or not isinstance(x, Tensor):
            raise ValueError("another input")
        y = self.a.forward(x) if self.by_name else self.a(x)
        if self.halves:
            c = int(y.size(1) / 2)
            y = torch.cat([y[:, c:], y[:, :c]], 1)
        if self.checkpointed and any(t.requires_grad for t in (x, y)):
            y = checkpoint(self.b, y, use_reentrant=False)
        else:
            y = self.b(y)
        if y.size(-1) != x.size(-1) or y.size(1) != x.size(1):
            x = self._fitted(x, y)
        return self.act(y + x)

    def _fitted(self, x: Any, y: Any) -> Any:
        if self.project is not None:
            return self.project(x)
        x = F.avg_pool2d(x, 1, self.stride) if self.stride > 1 else x
        if self.zeros == "pad":
            return F.pad(x, (0, 0, 0, 0, 0, y.size(1) - x.size(1)))
        if self.zeros == "multiple" and y.size(1) == 2 * x.size(1):
            return torch.cat([x, x.mul(0)], 1)
        return torch.cat([x, torch.zeros(x.size(0), y.size(1) - x.size(1), y.size(2), y.size(3))], 1)


class Split(Block):
    """A convolution of twice the width, and a gate or maximum over its halves."""

    choices = {"how": ("maximum", "glu")}

    def build(self, kit: Kit, i: int, o: int, stride: int, how: str = "gate") -> None:
        self.a, self.norm, self.how = nn.Conv2d(i, 2 * o, 3, stride, 1), kit.normed(o), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.how == "glu":
            return self.norm(F.glu(y, 1))
        a, b = y.chunk(2, 1)
        return self.norm(torch.maximum(a, b) if self.how == "maximum" else a * torch.sigmoid(b))


class Filtered(Block):
    """A convolution with TensorFlow's padding or a mask, and a fixed blur that strides."""

    choices = {"blurred": (True,), "masked": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, blurred: bool = False, masked: bool = False) -> None:
        self.stride = 1 if blurred else stride
        self.weight = nn.Parameter(torch.empty(o, i, 3, 3).normal_(0, 0.1))
        self.norm, self.act = kit.normed(o), kit.acting(o)
        self.register_buffer("mask", torch.ones(o, i, 3, 3) if masked else None)
        taps = torch.tensor([1.0, 2.0, 1.0])
        filt = (taps[:, None] * taps[None] / 16)[None, None].repeat(o, 1, 1, 1)
        self.register_buffer("filt", filt if blurred and stride > 1 else None)

    def forward(self, x: Any) -> Any:
        h, w = x.shape[-2:]
        s = self.stride
        ph, pw = (max((math.ceil(n / s) - 1) * s + 3 - n, 0) for n in (h, w))
        if ph > 0 or pw > 0:
            x = F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])
        weight = self.weight if self.mask is None else self.weight * self.mask
        x = self.act(self.norm(F.conv2d(x, weight, stride=s)))
        if self.filt is not None:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])
        return x


BLOCKS: dict[str, Callable[..., Any]] = {
    cls.__name__.lower(): cls
    for cls in (
        *(Plain, Asymmetric, Basic, Bottleneck, Inverted, Separable, Dense, Fire, Inception, Shuffle, GroupShuffle),
        *(CrossStage, ConvNeXt, MetaFormer, Star, Ghost, Parallel, Aggregate, Selective),
        *(Asking, Split, Filtered),
    )
}
