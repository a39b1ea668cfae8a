"""Networks whose forwards ask about their values, each in one way: what people write between the layers.

Every function is the forward of a `Net`; a class is a network of its own.
"""

import functools
import math
import operator
import warnings
from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

SIDE = 32
#: The networks by name.
NETS: dict[str, Callable[[], nn.Module]] = {}


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """Three units at full, half and quarter resolution, a linear classifier, and spare parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.third = unit(3, 8), unit(8, 16, 2), unit(16, 32, 2)
        self.fc = nn.Linear(32, 10)
        self.channels = 3

    def head(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.stem(x))))


def case(forward: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make a network of a forward."""
    NETS[forward.__name__] = lambda: type(forward.__name__, (Net,), {"forward": forward})()
    return forward


def net(cls: type[nn.Module]) -> type[nn.Module]:
    NETS[cls.__name__] = cls
    return cls


# --- guards and other questions ----------------------------------------------------------------------


@case
def raises_on_other_channels(self, x):
    if x.shape[1] != self.channels:
        raise ValueError("other channels")
    return self.body(x)


@case
def asserts_sizes(self, x):
    b, c, h, w = x.shape
    assert h % 4 == 0 and w % 4 == 0, f"{h}x{w:>3} {b}"  # noqa: PT018
    assert h == SIDE
    assert c in (1, 3)
    return self.body(x)


@case
def adds_missing_dimensions(self, x):
    if x.dim() == 3:
        x = x.unsqueeze(0)
    if len(x.shape) == 3:
        x = x[None]
    if x.ndim not in (3, 4):
        raise ValueError
    return self.body(x)


@case
def looks_for_broken_values(self, x):
    x = self.second(self.stem(x))
    if torch.isnan(x).any():
        raise ValueError("not a number")
    if not torch.isfinite(x).all():
        print("not finite")
    return self.head(self.third(x.type_as(x)))


@case
def asks_for_classes(self, x, labels=None, return_dict=True):
    if isinstance(x, Tensor) and torch.is_tensor(x) and not isinstance(x, list | tuple):
        x = [x]
    logits = self.body(torch.cat(x, 1))
    loss = None if labels is None else F.cross_entropy(logits, labels)
    return {"loss": loss, "logits": logits} if return_dict else (logits,)


@case
def asks_for_gradients(self, x):
    x = self.stem(x)
    if any(t.requires_grad for t in [x]):
        x = cp.checkpoint(self.second, x, use_reentrant=False)
    else:
        x = checkpoint(self.second, x, use_reentrant=False)
    return self.head(checkpoint_sequential(self.third, 2, x, use_reentrant=False))


@case
def asks_for_a_device(self, x):
    x = self.stem(x)
    if x.is_cuda or x.device.type == "mps":
        x = x.cuda()
    return self.head(self.third(self.second(x.to(x.device).contiguous())))


@net
class AsksItsBuffers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(1, dtype=torch.uint8))
        self.register_buffer("on", torch.tensor(True))

    def forward(self, x):
        if self.count.item() == 1:
            x = x * 2
        if not self.on:
            return x
        return self.body(x)


# --- shortcuts ----------------------------------------------------------------------------------------


class Shortcut(Net):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.project = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(8, 16, 1, 2)

    def shortcut(self, x: Any, y: Any) -> Any:
        raise NotImplementedError

    def forward(self, x):
        x = self.stem(x)
        y = self.main(x)
        x = F.relu(y + self.shortcut(x, y))
        return self.head(self.third(x))


def shortcut(method: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    NETS[method.__name__] = lambda: type(method.__name__, (Shortcut,), {"shortcut": method})()
    return method


@shortcut
def joins_zeros(self, x, y):
    x = F.avg_pool2d(x, 2)
    zeros = torch.zeros(x.size(0), y.size(1) - x.size(1), y.size(2), y.size(3))
    if x.is_cuda:
        zeros = zeros.cuda()
    return torch.cat([x, zeros], 1)


@shortcut
def joins_zeros_in_a_variable(self, x, y):
    x = x[:, :, ::2, ::2]
    zeros = Variable(torch.zeros(x.size(0), (y.shape[1] - x.shape[1]) // 2, *x.shape[2:], device=x.device))
    return torch.cat((zeros, x, zeros), dim=1)


@shortcut
def joins_its_multiple(self, x, y):
    x = F.avg_pool2d(x, 1, 2)
    return torch.cat((x, x.mul(0)), 1)


@shortcut
def projects_if_it_must(self, x, y):
    if y.size(-1) != x.size(-1) or y.size(1) != x.size(1):
        x = self.project(x)
    if y.shape != x.shape:
        raise RuntimeError
    return x


# --- numbers ------------------------------------------------------------------------------------------


@case
def halves_its_channels(self, x):
    x = self.second(self.stem(x))
    c = int(x.size(1) / 2)
    return self.head(self.third(torch.cat([x[:, c:], x[:, :c]], 1)))


@case
def splits_by_size(self, x):
    x = self.second(self.stem(x))
    parts = [part for part in torch.split(x, x.shape[1] // 4, 1)]  # noqa: C416
    return self.head(self.third(torch.cat(parts[::-1], dim=1)))


@case
def views_by_what_is_left(self, *xs):
    (x,) = xs
    n, *_rest = x.shape
    x = self.second(self.stem(x))
    x = x.view(n, 2, -1, *x.shape[2:]).transpose(1, 2).reshape(n, -1, x.shape[2], x.shape[3])
    return self.head(self.third(x))


class SamePadded(nn.Conv2d):
    """TensorFlow's padding, computed in the forward."""

    def forward(self, x):
        ih, iw = x.size()[-2:]
        kh, kw = self.weight.size()[-2:]
        oh, ow = math.ceil(ih / self.stride[0]), math.ceil(iw / self.stride[1])
        ph = max((oh - 1) * self.stride[0] + (kh - 1) * self.dilation[0] + 1 - ih, 0)
        pw = max((ow - 1) * self.stride[1] + (kw - 1) * self.dilation[1] + 1 - iw, 0)
        if ph > 0 or pw > 0:
            x = F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@net
class PadsAsTensorFlowDoes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second[0] = SamePadded(8, 16, 3, 2, bias=False)

    def forward(self, x):
        return self.body(x)


@case
def pads_by_floats(self, x):
    x = self.stem(x)
    h, w = x.shape[2], x.shape[3]
    ph, pw = (int((ceil(float(n) / 2) - 1) * 2 + 3 - n) for n in (h, w))
    x = F.pad(x, (pw // 2, pw - pw // 2, ph // 2, ph - ph // 2))
    x = F.relu(self.second[1](F.conv2d(x, self.second[0].weight, stride=2)))
    return self.head(self.third(x))


@net
class CountsItsFeatures(Net):
    """The classifier is bound to the size of its map, which is counted in several ways."""

    count: Callable[[Any], Any] = staticmethod(lambda x: x.size(1) * x.size(2) * x.size(3))

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32 * 8 * 8, 10)

    def forward(self, x):
        x = self.third(self.second(self.stem(x)))
        return self.fc(x.view(-1, self.count(x)))


def _product(x):
    n = 1
    for size in x.size()[1:]:
        n *= size
    return n


for name, count in {
    "tensor": lambda x: torch.prod(torch.tensor(x.shape[1:])).item(),
    "loop": _product,
    "numpy": lambda x: int(np.prod(x.size()[1:])),
    "math": lambda x: math.prod(x.shape[1:]),
    "reduce": lambda x: functools.reduce(operator.mul, x.shape[1:]),
    "numel": lambda x: x[0].numel(),
}.items():
    NETS[f"counts_by_{name}"] = functools.partial(
        lambda counted: type("Counts", (CountsItsFeatures,), {"count": staticmethod(counted)})(), count
    )


@case
def pools_by_an_integer(self, x):
    x = self.third(self.second(self.stem(x)))
    x = F.avg_pool2d(x, int(x.shape[-1]))
    return self.fc(x.view(x.size(0), -1))


@case
def counts_the_images_elsewhere(self, x):
    n = x.size(0)
    x = F.adaptive_avg_pool2d(self.third(self.second(self.stem(x))), 1)
    return self.fc(x.view(n, -1))


@case
def draws_and_makes(self, x):
    x = self.second(self.stem(x))
    x = x * torch.ones(x.size(0), 1, 1, 1) + torch.arange(x.shape[1]).view(1, -1, 1, 1) * torch.tensor(0.1)
    return self.head(self.third(x))


# --- modules in other ways ----------------------------------------------------------------------------


@case
def builds_modules(self, x):
    x = nn.ReLU(inplace=True)(self.stem[1](self.stem[0](x)))
    x = nn.MaxPool2d(2)(self.second[0](x))
    x = nn.Sequential(self.third[0], self.third[1], nn.LeakyReLU(0.1))(x)
    x = nn.Flatten()(nn.AvgPool2d(x.size(2))(x))
    return nn.LogSoftmax(dim=1)(self.fc(x))


@net
class Slices(Net):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*self.stem, *self.second, *self.third)
        del self.stem, self.second, self.third

    def forward(self, x):
        x = self.features[3:6](self.features[:3](x))
        for layer in self.features[6:]:
            x = layer(x)
        return self.head(x)


@case
def calls_forward(self, x):
    x = self.second[0].forward(self.stem.forward(x))
    x = F.relu(self.second[1].forward(x))
    return self.fc.forward(F.adaptive_avg_pool2d(self.third.forward(x), 1).flatten(1))


def scripted(thing: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is going out of use
        return torch.jit.script(thing)


class Scriptable(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act, self.times = nn.LeakyReLU(0.2), 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        if x.shape[1] == 16 and self.times == 3:
            x = F.relu(x)
        return x


@net
class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = scripted(Scriptable(8, 16))
        self.third = scripted(nn.Sequential(Scriptable(16, 32), nn.Identity()))

    def forward(self, x):
        return self.body(x)


def _swish(x):
    return x * torch.sigmoid(x)


swish = scripted(_swish)


@case
def calls_a_scripted_function(self, x):
    return self.head(self.third(swish(self.second(self.stem(x)))))


@case
def turns_autocast_off(self, x):
    with torch.autocast("cuda", enabled=False):
        x = self.second(self.stem(x.float()))
    return self.head(self.third(x))


# --- weights and constants ----------------------------------------------------------------------------


@net
class Functional(nn.Module):
    """Functions over a dict of parameters."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"c0": (8, 3, 3, 3), "b0": (8,), "c1": (16, 8, 3, 3), "g": (16,), "s": (16,), "c2": (32, 16, 3, 3),
                  "w": (10, 32), "b": (10,)}  # fmt: skip
        self.params = nn.ParameterDict({k: nn.Parameter(torch.randn(*v) * 0.1) for k, v in shapes.items()})
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))

    def forward(self, x):
        p = self.params
        x = F.relu(F.conv2d(x, p["c0"], p["b0"], padding=1))
        x = F.batch_norm(F.conv2d(x, p["c1"], None, 2, 1), self.mean, self.var, p["g"], p["s"], self.training)
        x = F.relu(F.conv2d(F.relu(x), p["c2"], stride=2, padding=1))
        return F.linear(x.mean([2, 3]), p["w"], bias=p["b"])


@net
class NormalisesByAttributes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.std = torch.tensor([0.2, 0.2, 0.3])

    def forward(self, x):
        return self.body((x - Variable(self.mean)) / self.std[None, :, None, None])


@case
def normalises_by_constants(self, x):
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor((0.2, 0.2, 0.3)).view(3, 1, 1).to(x.device)
    return self.body((x - mean) / std)


class Blurred(nn.Module):
    """A blur as in anti-aliased networks, one copy of the filter per channel in a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        filt = taps[:, None] * taps[None]
        self.register_buffer("filt", (filt / filt.sum())[None, None].repeat(channels, 1, 1, 1))
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x):
        return F.conv2d(self.pad(x), self.filt, stride=2, groups=x.shape[1])


@net
class Blurs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.third = nn.Sequential(unit(8, 16), Blurred(16)), unit(16, 32, 2)

    def forward(self, x):
        return self.body(x)


@net
class BlursByOneFilter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filt", torch.ones(1, 1, 3, 3) / 9)
        self.second = unit(8, 16)

    def forward(self, x):
        x = self.second(self.stem(x))
        filt = self.filt.expand(x.size(1), -1, -1, -1).to(x.dtype)
        return self.head(self.third(F.conv2d(x, filt, stride=2, padding=1, groups=x.size(1))))


@net
class Deforms(Net):
    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.offsets, self.deformed = nn.Conv2d(8, 18, 3, 2, 1), DeformConv2d(8, 16, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.third(F.relu(self.deformed(x, self.offsets(x)))))


# --- assignments, wrappers, outputs -------------------------------------------------------------------


@case
def assigns_channels(self, x):
    x = self.second(self.stem(x))
    x[:, :4] = x[:, :4] * 2
    x[:, 6:, :, :] *= 0.5
    return self.head(self.third(x))


@case
def normalises_in_place(self, x):
    x = x.clone()
    for i in range(3):
        x[:, i] = (x[:, i] - 0.5) / 0.2
    return self.body(x)


@case
def assigns_by_a_mask(self, x):
    x = self.second[1](self.second[0](self.stem(x))).clone()
    x[x < 0] = 0
    return self.head(self.third(x))


@case
def assigns_a_border(self, x):
    x = self.second(self.stem(x)).clone()
    x[:, :, :1, :] = 0.5
    return self.head(self.third(x))


@net
class WrapsItsTrunk(Net):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.DataParallel(nn.Sequential(self.stem, self.second, self.third))
        del self.stem, self.second, self.third

    def forward(self, x):
        return self.head(self.trunk(x))


@case
def makes_positions(self, x):
    x = self.second(self.stem(x))
    rows = torch.linspace(-1, 1, x.size(2)).view(1, 1, -1, 1).expand(x.size(0), 1, x.size(2), x.size(3))
    return self.head(self.third(x * (1 + rows)))


class Sign(torch.autograd.Function):
    """A sign whose gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


sign = Sign.apply


@case
def applies_a_function_of_its_own(self, x):
    return self.head(self.third(Sign.apply(self.second[1](self.second[0](self.stem(x))))))


@case
def applies_a_function_by_another_name(self, x):
    return self.head(self.third(sign(self.second[1](self.second[0](self.stem(x))))))


@case
def hooks_its_gradients(self, x):
    x = self.second(self.stem(x))
    x.register_hook(lambda gradient: gradient)
    self.features = x
    return self.head(self.third(self.features))


@net
class HoldsACompiledPart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = torch.compile(self.second, backend="eager")

    def forward(self, x):
        return self.body(x)


@case
def views_an_image_as_itself(self, x):
    return self.body(x.view(-1, 3, SIDE, SIDE))


@net
class KeepsStatisticsInParameters(Functional):
    """As functional networks of meta-learning do."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean, self.var
        self.mean = nn.Parameter(torch.zeros(16), requires_grad=False)
        self.var = nn.Parameter(torch.ones(16), requires_grad=False)


@case
def casts_its_input(self, x):
    x = x.to(self.fc.weight.device)
    return self.body(x.to(device=self.fc.weight.device, dtype=self.fc.weight.dtype, non_blocking=True))


@net
class HandsNoneThroughAModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        x, extra = self.second(self.stem(x)), self.same(None)
        return self.head(self.third(x if extra is None else x + extra))


@net
class PutsShapesTogether(Net):
    """Attention whose heads are written as a tuple behind the sizes that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        x = self.second(self.stem(x))
        n, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        q, k, v = (t.view(t.size()[:-1] + (4, 4)).permute(0, 2, 1, 3) for t in (q, k, v))  # noqa: RUF005
        y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).permute(0, 2, 1, 3).contiguous()
        y = self.out(y.view(y.size()[:-2] + (16,)))  # noqa: RUF005
        return self.head(self.third(x + y.transpose(1, 2).reshape(n, c, h, w)))


@case
def lays_groups_out_as_images(self, x):
    x = self.second(self.stem(x))
    n, _c, h, w = x.shape
    x = x.reshape(n * 4, -1, h, w)
    a, b = x.chunk(2, dim=1)
    x = torch.cat([a * torch.sigmoid(a.mean((2, 3), keepdim=True)), b], 1).reshape(n, -1, h, w)
    return self.head(self.third(x))
