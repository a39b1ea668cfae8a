"""Parts of random networks: norms, gates, stems, blocks and heads, each as somebody or other writes it.

A part is ``Part(kit, inputs, outputs, stride, **options)``; the default of every option is the usual choice, and
``choices`` lists what else may be drawn. A `Kit` holds what the parts of one network have in common.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def hard_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


#: Activations as modules and as functions.
ACTS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU, F.relu),
    "relu_": (lambda: nn.ReLU(inplace=True), lambda x: F.relu(x, inplace=True)),
    "silu": (nn.SiLU, F.silu),
    "gelu": (nn.GELU, F.gelu),
    "hardswish": (nn.Hardswish, F.hardswish),
    "leaky": (lambda: nn.LeakyReLU(0.1, True), lambda x: F.leaky_relu(x, 0.1)),
    "relu6": (lambda: nn.ReLU6(True), F.relu6),
    "elu": (nn.ELU, F.elu),
    "mish": (nn.Mish, F.mish),
    "tanh": (nn.Tanh, torch.tanh),
    "method": (nn.ReLU, lambda x: x.relu()),
    "swish": (nn.SiLU, swish),
    "hard_swish": (nn.Hardswish, hard_swish),
}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "bn_plain": lambda c: nn.BatchNorm2d(c, affine=False),
    "gn": lambda c: nn.GroupNorm(math.gcd(c, 4), c),
    "gn1": lambda c: nn.GroupNorm(1, c),
    "in": nn.InstanceNorm2d,
    "in_affine": lambda c: nn.InstanceNorm2d(c, affine=True),
    "ln": lambda c: LayerNorm2d(c),
    "ln_manual": lambda c: ChannelNorm(c),
    "none": lambda c: nn.Identity(),
}


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class StandardConv(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PaddedConv(nn.Conv2d):
    """A convolution that pads what it reads itself, to the right and below where it strides."""

    def forward(self, x: Tensor) -> Tensor:
        before = tuple((k - 1) * d // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        h, w = before
        return super().forward(F.pad(x, (0, 2 * w, 0, 2 * h) if self.stride[0] > 1 else (w, w, h, h)))


@dataclass(frozen=True)
class Kit:
    """What the parts of one network have in common; the defaults are the usual choices."""

    norm: str = "bn"
    act: str = "relu"
    functional: bool = False
    preact: bool = False
    bias: bool = False
    add: str = "+"
    cat: str = "cat"
    shortcut: str = "conv"
    padding: str = "number"
    drop: str = ""
    order: str = "norm"
    shared: bool = False
    standard: bool = False
    one: dict[str, nn.Module] = field(default_factory=dict, compare=False)

    choices = {
        "norm": ("bn", "gn", "gn1", "ln", "ln_manual", "in", "in_affine", "none", "bn_plain"),
        "act": (*ACTS, "prelu", "prelu1"),
        "functional": (True,),
        "preact": (True,),
        "bias": (True,),
        "add": ("+=", "torch", "method", "swapped"),
        "cat": ("concat", "keyword"),
        "shortcut": ("bare", "average", "max", "pad", "raw"),
        "padding": ("word", "reflect", "layer", "class"),
        "drop": ("path", "dropout", "functional"),
        "order": ("act",),
        "shared": (True,),
        "standard": (True,),
    }

    def conv(
        self, i: int, o: int, kernel: Any = 3, stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> nn.Module:
        """A convolution that keeps the size, or divides it by its stride."""
        k = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding: Any = tuple(dilation * (n - 1) // 2 for n in k)
        if stride == 1 and self.padding == "word" and all(n % 2 for n in k):
            padding = "same"
        mode = "reflect" if self.padding == "reflect" and padding != "same" else "zeros"
        bias = self.bias or self.norm == "none"
        groups = math.gcd(groups, i, o)
        odd = all(n % 2 for n in k)
        if odd and self.padding == "class":
            return PaddedConv(i, o, kernel, stride, 0, dilation, groups, bias)
        if odd and self.padding == "layer" and max(k) > 1:
            h, w = padding
            pad = nn.ZeroPad2d((0, 2 * w, 0, 2 * h) if stride > 1 else (w, w, h, h))
            return nn.Sequential(pad, nn.Conv2d(i, o, kernel, stride, 0, dilation, groups, bias))
        cls = StandardConv if self.standard and mode == "zeros" and padding != "same" else nn.Conv2d
        return cls(i, o, kernel, stride, padding, dilation, groups, bias, mode)

    def normed(self, width: int) -> nn.Module:
        return NORMS[self.norm](width)

    def acting(self, width: int = 0) -> Any:
        """An activation: a module, or in functional code a function."""
        if self.act.startswith("prelu"):
            return nn.PReLU(width if self.act == "prelu" and width else 1)
        module, function = ACTS[self.act]
        if self.functional:
            return function
        return self.one.setdefault("act", module()) if self.shared else module()

    def unit(self, i: int, o: int, kernel: Any = 3, stride: int = 1, act: bool = True, **conv: int) -> nn.Module:
        """A convolution with norm and activation, in the network's order and writing."""
        layer = self.conv(i, o, kernel, stride, **conv)
        norm = self.normed(i if self.preact else o)
        acting = self.acting(i if self.preact else o) if act else None
        if self.functional:
            return Unit(layer, norm, acting, self.preact, self.order == "act")
        norm_act = [acting, norm] if self.order == "act" else [norm, acting]
        parts = [*norm_act, layer] if self.preact else [layer, *norm_act]
        return nn.Sequential(*(p for p in parts if p is not None and not isinstance(p, nn.Identity)))

    def sum(self, x: Tensor, y: Tensor) -> Tensor:
        if self.add == "+=":
            x += y
            return x
        if self.add == "swapped":
            return y + x
        return {"torch": torch.add, "method": lambda a, b: a.add(b)}.get(self.add, lambda a, b: a + b)(x, y)

    def join(self, tensors: list[Tensor]) -> Tensor:
        if self.cat == "keyword":
            return torch.cat(tensors, dim=-3)
        return {"cat": torch.cat, "concat": torch.concat}[self.cat](tensors, 1)


class Unit(nn.Module):
    """A conv unit in functional code."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: Any, preact: bool, act_first: bool) -> None:
        super().__init__()
        self.norm, self.conv, self.act, self.preact, self.act_first = norm, conv, act, preact, act_first

    def forward(self, x: Tensor) -> Tensor:
        if not self.preact:
            x = self.conv(x)
        if self.act is not None and self.act_first:
            x = self.act(x)
        x = self.norm(x)
        if self.act is not None and not self.act_first:
            x = self.act(x)
        return self.conv(x) if self.preact else x


# --- gates --------------------------------------------------------------------------------------------


class Squeeze(nn.Module):
    """Squeeze-and-excite with 1x1 convolutions."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.functional = kit.functional
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.a, self.b = nn.Conv2d(width, max(width // 4, 1), 1), nn.Conv2d(max(width // 4, 1), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True) if self.functional else self.pool(x)
        s = self.b(F.relu(self.a(s)))
        return x * (F.hardsigmoid(s) if self.functional else torch.sigmoid(s))


class SqueezeLinear(nn.Module):
    """Squeeze-and-excite with linear layers."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.functional = kit.functional
        hidden = max(width // 4, 2)
        self.fc = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(True), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            b, c, _, _ = x.size()
            return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)
        return x * self.fc(x.mean([2, 3]))[:, :, None, None]


class ChannelConv(nn.Module):
    """A gate by a convolution over the channels (ECA)."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.functional = kit.functional
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
            return x * self.conv(y).transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.sigmoid().view(x.shape[0], -1, 1, 1)


class Spatial(nn.Module):
    """A gate over positions (CBAM's second half)."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.conv(maps))


class Excursion(nn.Module):
    """A gate that is computed at half the resolution."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(F.avg_pool2d(x, 2))
        return x * torch.sigmoid(F.interpolate(gate, size=x.shape[-2:], mode="nearest"))


class SelfGate(nn.Module):
    """A gate by a 1x1 convolution of the map itself."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.conv(x).sigmoid())


class Scale(nn.Module):
    """Layer scale."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        shape = (1, width, 1, 1) if kit.functional else (width, 1, 1)
        self.gamma = nn.Parameter(torch.full(shape, 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


GATES = {
    "": lambda kit, width: nn.Identity(),
    "se": Squeeze,
    "se_linear": SqueezeLinear,
    "eca": ChannelConv,
    "spatial": Spatial,
    "excursion": Excursion,
    "self": SelfGate,
    "scale": Scale,
}


def dropping(kit: Kit) -> nn.Module:
    return {"path": lambda: DropPath(0.2), "dropout": lambda: nn.Dropout2d(0.1)}.get(kit.drop, nn.Identity)()


# --- shortcuts ----------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """The input of a residual block, brought to the size and width of its output."""

    def __init__(self, kit: Kit, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, max(o - i, 0)
        self.pads = kit.shortcut == "pad" and o >= i
        pool = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}.get(kit.shortcut) if stride > 1 else None
        self.pool = nn.Identity() if pool is None else pool(stride, stride, ceil_mode=True)
        same = i == o and (stride == 1 or pool is nn.MaxPool2d)
        if self.pads or same:
            self.project: nn.Module = nn.Identity()
        else:
            conv = nn.Conv2d(i, o, 1, stride if pool is None else 1, bias=kit.norm == "none")
            bare = kit.preact or kit.shortcut == "bare"
            self.project = conv if bare else nn.Sequential(conv, kit.normed(o))

    def forward(self, x: Tensor) -> Tensor:
        if not self.pads:
            return self.project(self.pool(x))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x


class Residual(nn.Module):
    """Main path plus shortcut; before an activation, or behind one in pre-activation nets."""

    choices: dict[str, tuple[Any, ...]] = {}

    def __init__(self, kit: Kit, i: int, o: int, stride: int = 1, **options: Any) -> None:
        super().__init__()
        self.kit, self.width = kit, o
        self.shortcut = Shortcut(kit, i, o, stride)
        self.gate: Callable[[Tensor], Tensor] = GATES[options.pop("gate", "")](kit, o)
        self.drop = dropping(kit)
        self.opening = kit.preact and kit.shortcut != "raw" and (i != o or stride > 1)
        if self.opening:
            self.open = nn.Sequential(kit.normed(i), nn.ReLU())
        self.act = kit.acting(o)
        self.build(kit, i, o, stride, **options)

    def build(self, kit: Kit, i: int, o: int, stride: int, **options: Any) -> None:
        raise NotImplementedError

    def first(self, i: int, o: int, kernel: Any = 3, stride: int = 1, **conv: int) -> nn.Module:
        """The first convolution of the main path; bare where norm and activation open the whole block."""
        conv = {"groups": 1, **conv}
        return (
            self.kit.conv(i, o, kernel, stride, **conv)
            if self.opening
            else self.kit.unit(i, o, kernel, stride, **conv)
        )

    def last(self, i: int, o: int, kernel: Any = 3, stride: int = 1, **conv: int) -> nn.Module:
        """The last convolution: without activation behind it."""
        return self.kit.unit(i, o, kernel, stride, act=self.kit.preact, **conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.opening:
            x = self.open(x)
        y = self.drop(self.gate(self.main(x)))
        if self.kit.drop == "functional":
            y = F.dropout(y, 0.1, self.training)
        y = self.kit.sum(y, self.shortcut(x))
        return y if self.kit.preact else self.act(y)


# --- plain blocks -------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block that is not a plain residual one; ``build`` makes it, ``width`` is its output's."""

    choices: dict[str, tuple[Any, ...]] = {}

    def __init__(self, kit: Kit, i: int, o: int, stride: int = 1, **options: Any) -> None:
        super().__init__()
        self.kit, self.width = kit, o
        self.build(kit, i, o, stride, **options)

    def build(self, kit: Kit, i: int, o: int, stride: int, **options: Any) -> None:
        raise NotImplementedError


class Plain(Block):
    """A conv unit."""

    choices = {"kernel": (1, 5, 7, 4, 2, (1, 5), (3, 1)), "groups": (2, 4), "dilation": (2,), "valid": (True,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: Any = 3, groups: int = 1, dilation: int = 1,
              valid: bool = False) -> None:  # fmt: skip
        dilation = dilation if stride == 1 and not valid else 1
        self.body = kit.unit(i, o, kernel, stride, groups=groups, dilation=dilation)
        if valid:
            for m in self.body.modules():
                if isinstance(m, nn.Conv2d):
                    m.padding, m.padding_mode = (0, 0), "zeros"

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Asymmetric(Block):
    """A 1xk conv unit before a kx1 one."""

    choices = {"kernel": (3, 5), "inner": (6,)}

    def build(self, kit: Kit, i: int, o: int, stride: int, kernel: int = 7, inner: int = 0) -> None:
        self.a = kit.unit(i, inner or o, (1, kernel))
        self.b = kit.unit(inner or o, o, (kernel, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))
