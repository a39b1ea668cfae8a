"""Random CNN classifiers: a spec is drawn from a grammar, and a network is built from its spec.

A spec is a plain literal, so that ``build(ast.literal_eval(text))`` makes a network again from what was printed.
The grammar sees only a `Draw`: hypothesis draws (`specs`), and so does a seeded generator (`spec_of`).
"""

import itertools
import operator
import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from blocks import BLOCKS
from hypothesis import strategies as st
from kit import Kit, LayerNorm2d
from torch import Tensor, nn

from bu2td.errors import NoReductionError, TopologyError, UnsupportedOperationError

T = TypeVar("T")
Spec = dict[str, Any]

#: What a network that is a CNN classifier may still be refused for.
REFUSALS = (NoReductionError, TopologyError, UnsupportedOperationError)

#: How a level is entered: by the stride of its first block, or by one of these layers before it.
DOWN: dict[str, Any] = {
    "max2": lambda kit, i: nn.MaxPool2d(2),
    "max3": lambda kit, i: nn.MaxPool2d(3, 2, 1),
    "max3_valid": lambda kit, i: nn.MaxPool2d(3, 2),
    "max_ceil": lambda kit, i: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average2": lambda kit, i: nn.AvgPool2d(2),
    "average3": lambda kit, i: nn.AvgPool2d(3, 2, 1),
    "functional": lambda kit, i: Call(lambda x: F.max_pool2d(x, 2)),
    "functional_average": lambda kit, i: Call(lambda x: F.avg_pool2d(x, (2, 2))),
    "conv2": lambda kit, i: kit.unit(i, i, 2, 2),
    "conv3": lambda kit, i: kit.unit(i, i, 3, 2),
    "bare3": lambda kit, i: kit.conv(i, i, 3, 2),
    "norm_conv2": lambda kit, i: nn.Sequential(LayerNorm2d(i), nn.Conv2d(i, i, 2, 2)),
    "depthwise": lambda kit, i: kit.unit(i, i, 3, 2, groups=i),
    "transition": lambda kit, i: nn.Sequential(kit.unit(i, max(i // 2, 3), 1), nn.AvgPool2d(2)),
    "transition_max": lambda kit, i: nn.Sequential(kit.unit(i, max(i // 2, 3), 1), nn.MaxPool2d(2, 2)),
    "max3s3": lambda kit, i: nn.MaxPool2d(3, 3),
    "patch4": lambda kit, i: kit.conv(i, i, 4, 4),
    "dropped": lambda kit, i: nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.2)),
}

#: Ways in that do not halve the resolution.
FACTORS = {"none": 1, "max3s3": 3, "patch4": 4}

#: What is done to the image first.
INPUTS: dict[str, Any] = {
    "": lambda channels: nn.Identity(),
    "standardise": lambda channels: Standardise(channels),
    "scale": lambda channels: Call(lambda x: 2 * x - 1),
    "norm": nn.BatchNorm2d,
    "constants": lambda channels: Call(_standardised),
    "colours": lambda channels: Colours(channels),
    "grey": lambda channels: Call(lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1)),
    "coordinates": lambda channels: Call(_with_coordinates),
}

#: How many channels they add.
ADDED = {"grey": 1, "coordinates": 2}


def _standardised(x: Tensor) -> Tensor:
    return (x - torch.tensor(0.45).to(x.device)) / torch.full((1, 1, 1), 0.22)


def _with_coordinates(x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
    columns = torch.linspace(-1, 1, w).view(1, 1, 1, w).expand(n, 1, h, w)
    return torch.cat([x, rows, columns], 1)


STEMS: dict[str, tuple[int, Any]] = {
    "": (1, lambda kit, c, o: nn.Identity()),
    "conv3": (1, lambda kit, c, o: kit.unit(c, o, 3)),
    "bare3": (1, lambda kit, c, o: kit.conv(c, o, 3)),
    "conv3s2": (2, lambda kit, c, o: kit.unit(c, o, 3, 2)),
    "conv3s2_valid": (2, lambda kit, c, o: BLOCKS["plain"](kit, c, o, 2, valid=True)),
    "conv7s2_max": (4, lambda kit, c, o: nn.Sequential(kit.unit(c, o, 7, 2), nn.MaxPool2d(3, 2, 1))),
    "conv7s2_ceil": (4, lambda kit, c, o: nn.Sequential(kit.unit(c, o, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True))),
    "patch4": (4, lambda kit, c, o: nn.Sequential(nn.Conv2d(c, o, 4, 4), LayerNorm2d(o))),
    "patch2": (2, lambda kit, c, o: nn.Conv2d(c, o, 2, 2)),
    "deep": (4, lambda kit, c, o: nn.Sequential(
        kit.unit(c, o, 3, 2), kit.unit(o, o, 3), kit.unit(o, o, 3), nn.MaxPool2d(3, 2, 1))),
    "deep2": (4, lambda kit, c, o: nn.Sequential(kit.unit(c, o, 3, 2), kit.unit(o, o, 3, 2))),
    "conv7s4": (4, lambda kit, c, o: kit.unit(c, o, 7, 4)),
    "unshuffle": (2, lambda kit, c, o: nn.Sequential(nn.PixelUnshuffle(2), kit.unit(4 * c, o, 3))),
    "focus": (2, lambda kit, c, o: nn.Sequential(Call(_focused), kit.unit(4 * c, o, 3))),
}  # fmt: skip

#: Stems that stride by two twice; the others by 4 stride at once.
TWICE = ("conv7s2_max", "conv7s2_ceil", "deep", "deep2")


def _focused(x: Tensor) -> Tensor:
    return torch.cat([x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)], 1)


HEADS = (
    *("mean", "flat", "conv", "view", "max", "flatten", "map", "classifier", "bare_classifier", "mlp", "wide"),
    *("wide_act", "norm", "pooled2", "both", "norm_act", "last", "keepdim", "window", "tokens", "whole", "power"),
    *("norm1d", "softmax", "sum", "squeeze", "unit"),
)


class Draw(Protocol):
    """Where a grammar gets its choices from."""

    def integer(self, low: int, high: int) -> int: ...

    def choice(self, options: Sequence[T]) -> T: ...

    def boolean(self, p: float = 0.5) -> bool: ...


class Seeded:
    """Draws of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def choice(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def boolean(self, p: float = 0.5) -> bool:
        return self.random.random() < p


class Drawn:
    """Draws of hypothesis; it simplifies towards the first option, low numbers and False."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def choice(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def boolean(self, p: float = 0.5) -> bool:
        return self.draw(st.integers(0, 99)) >= round(100 * (1 - p))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    return draw_spec(Drawn(draw))


def spec_of(seed: int) -> Spec:
    return draw_spec(Seeded(seed))


# --- the grammar --------------------------------------------------------------------------------------


def draw_spec(draw: Draw) -> Spec:
    """A network of one family of blocks, or of several; only what is not the usual choice is written down."""
    kit = _options(draw, Kit.choices, 0.25)
    families = list(BLOCKS)
    mixed = draw.boolean(0.25)
    family = draw.choice(families)
    stem = draw.choice([s for s in STEMS if s or family in ("plain", "asymmetric") or draw.boolean(0.3)])
    levels, reduction, shaved = [], STEMS[stem][0], 0
    count = draw.integer(2, 4)
    usual = draw.choice(list(DOWN)) if draw.boolean(0.5) else ""
    style = _options(draw, BLOCKS[family].choices, 0.25)
    for n in range(count):
        if mixed:
            family = draw.choice(families)
            style = _options(draw, BLOCKS[family].choices, 0.25)
        down = usual if draw.boolean(0.9) else draw.choice(["", *DOWN])
        if n == 0 and draw.boolean(0.5):
            down = "none"
        elif reduction * FACTORS.get(down, 2) <= 32:
            reduction *= FACTORS.get(down, 2)
        else:
            break
        width = draw.choice([8, 16, 24, 32]) if draw.boolean(0.6) else draw.choice([5, 10, 12, 17, 20, 27])
        blocks = [[family, width, style if draw.boolean(0.7) else _options(draw, BLOCKS[family].choices, 0.25)]
                  for _ in range(draw.integer(1, 3))]  # fmt: skip
        extra = {"skip": draw.boolean(0.1), "twice": draw.boolean(0.1)}
        shaved += sum(reduction * _shaves(options) for _, _, options in blocks)
        levels.append({"down": down, "blocks": blocks, **{name: True for name, on in extra.items() if on}})
    roomy = kit.get("padding") == "reflect" or kit.get("norm", "").startswith("in")
    least = max(32, (5 if roomy else 2) * reduction) + shaved
    even = 2 if stem in ("unshuffle", "focus") else 1
    height = draw.choice([least, least + 32]) if draw.boolean(0.6) else draw.integer(least, least + 40)
    width = height if draw.boolean(0.7) else draw.integer(least, least + 40)
    return {
        "image": [draw.choice([3, 3, 3, 1, 4]), height // even * even, width // even * even],
        "kit": kit,
        "input": draw.choice(list(INPUTS)) if draw.boolean(0.2) else "",
        "stem": [stem, draw.choice([8, 12, 16, 7])],
        "levels": levels,
        "head": draw.choice(HEADS),
        "writing": draw.choice(["nested", "flat", "stages", "loop", "sliced"]),
    }


def _options(draw: Draw, choices: dict[str, tuple[Any, ...]], p: float) -> dict[str, Any]:
    return {name: draw.choice(values) for name, values in choices.items() if draw.boolean(p)}


def _shaves(options: dict[str, Any]) -> int:
    """How many pixels a plain block may shave off."""
    kernel = options.get("kernel", 3)
    largest = max(kernel) if isinstance(kernel, tuple) else kernel
    return largest if options.get("valid") else 1 - largest % 2


def ladder(spec: Spec) -> tuple[int, ...]:
    """The reductions of a network of this spec, coarse to fine."""
    strides = [FACTORS.get(level["down"], 2) for level in spec["levels"]]
    stem = STEMS[spec["stem"][0]][0]
    steps = [stem] if spec["stem"][0] not in TWICE else [2, 2]
    found = {1, *itertools.accumulate([*steps, *strides], operator.mul)}
    return tuple(sorted(found, reverse=True))


# --- from spec to network -----------------------------------------------------------------------------


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Standardise(nn.Module):
    """Subtract a mean and divide by a deviation per channel of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.45))
        self.register_buffer("deviation", torch.full((1, channels, 1, 1), 0.22))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Colours(nn.Module):
    """A learned transform of the colours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix(x))


class Skip(nn.Module):
    """A shortcut around a whole block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Network(nn.Module):
    """Stem, levels and head; ``writing`` says in which structure."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        kit = Kit(**spec["kit"])
        channels, height, width = spec["image"]
        name, widest = spec["stem"]
        stem = STEMS[name][1](kit, channels + ADDED.get(spec["input"], 0), widest)
        self.stem = nn.Sequential(INPUTS[spec["input"]](channels), stem) if spec["input"] else stem
        self.levels = nn.ModuleList()
        at = widest if name else channels + ADDED.get(spec["input"], 0)
        for level in spec["levels"]:
            parts: list[nn.Module] = []
            inside: list[tuple[int, int]] = []
            stride = 2 if level["down"] == "" else 1
            if level["down"] in DOWN:
                parts.append(DOWN[level["down"]](kit, at))
                at = max(at // 2, 3) if "transition" in level["down"] else at
            for family, wanted, options in level["blocks"]:
                parts.append(BLOCKS[family](kit, at, wanted, stride, **options))
                inside.append((at, parts[-1].width))
                at, stride = parts[-1].width, 1
            if len(parts) > 1 and inside[-1][0] == inside[-1][1] and not _shaves(level["blocks"][-1][2]):
                if level.get("skip"):
                    parts[-1] = Skip(parts[-1])
                if level.get("twice"):
                    parts.append(parts[-1])
            self.levels.append(nn.Sequential(*parts))
        self.body = _written(spec["writing"], self.stem, self.levels)
        del self.stem, self.levels
        with torch.no_grad():
            size = tuple(self.body.eval()(torch.zeros(2, channels, height, width)).shape[2:])
        self.train()
        self.head = Head(kit, at, spec["head"], size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _written(writing: str, stem: nn.Module, levels: nn.ModuleList) -> nn.Module:
    if writing == "nested":
        return nn.Sequential(stem, nn.Sequential(*levels))
    if writing == "flat":
        return nn.Sequential(stem, *(block for level in levels for block in level))
    if writing == "sliced":
        return Sliced(stem, *(block for level in levels for block in level))
    return Stages(stem, levels) if writing == "stages" else Loop(stem, levels)


class Sliced(nn.Module):
    """A list that is called in slices, after the image was looked at."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        assert n > 0
        assert min(h, w) >= 8, f"too small: {h}x{w}"
        half = len(self.features) // 2
        return self.features[half:](self.features[:half](x))


class Stages(nn.Module):
    def __init__(self, stem: nn.Module, levels: nn.ModuleList) -> None:
        super().__init__()
        self.count = len(levels)
        for n, level in enumerate(levels):
            self.add_module(f"layer{n}", level)
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        out = self.stem(x)
        for n in range(self.count):
            out = getattr(self, f"layer{n}")(out)
        return out


class Loop(nn.Module):
    def __init__(self, stem: nn.Module, levels: nn.ModuleList) -> None:
        super().__init__()
        self.stem, self.levels = stem, nn.ModuleList(nn.ModuleList(level) for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level in self.levels:
            for block in level:  # type: ignore[attr-defined]
                x = block(x)
        return x


#: Ways of writing a global pool.
POOLS: dict[str, Any] = {
    "max": lambda x: F.adaptive_max_pool2d(x, 1).reshape(x.shape[0], -1),
    "pooled2": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 2), 1),
    "keepdim": lambda x: x.mean(-1, keepdim=True).mean(-2, keepdim=True)[:, :, 0, 0],
    "view": lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
    "flat": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "tokens": lambda x: x.flatten(2).mean(-1),
    "whole": lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]).flatten(1),
    "power": lambda x: F.avg_pool2d(x.clamp(min=1e-6).pow(3), (x.size(-2), x.size(-1))).pow(1 / 3).flatten(1),
    "sum": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "squeeze": lambda x: torch.squeeze(F.adaptive_avg_pool2d(x, 1)),
    "unit": lambda x: F.normalize(x.mean((2, 3)), dim=1),
}


class Head(nn.Module):
    """From the last map to ten logits."""

    def __init__(self, kit: Kit, width: int, kind: str, size: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.kind, self.width, self.size = kind, width, size
        self.before: nn.Module = nn.Identity()
        inputs = width
        if kind in ("wide", "wide_act"):
            inputs = 2 * width
            self.before = kit.unit(width, inputs, 1) if kind == "wide_act" else nn.Conv2d(width, inputs, 1)
        elif kind == "norm_act":
            self.before = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        elif kind in ("norm", "last"):
            self.norm = nn.LayerNorm(width)
        elif kind == "classifier":
            self.before = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(width, classes, 1), nn.ReLU(True))
        elif kind == "bare_classifier":
            self.before = nn.Conv2d(width, classes, 1)
        inputs *= {"both": 2, "pooled2": 4, "flatten": size[0] * size[1]}.get(kind, 1)
        if kind == "conv":
            self.fc: nn.Module = nn.Conv2d(width, classes, 1)
        elif kind == "map":
            self.fc = nn.Conv2d(width, classes, size)
        elif kind == "norm1d":
            self.fc = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, classes))
        elif kind == "softmax":
            self.fc = nn.Sequential(nn.Linear(width, classes), nn.LogSoftmax(dim=1))
        elif kind == "mlp":
            self.fc = nn.Sequential(nn.Linear(inputs, 2 * width), nn.Hardswish(), nn.Dropout(0.2),
                                    nn.Linear(2 * width, classes))  # fmt: skip
        elif "classifier" not in kind:
            self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        kind = self.kind
        if "classifier" in kind:
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        if kind == "conv":
            return torch.flatten(self.fc(F.adaptive_avg_pool2d(x, (1, 1))), 1)
        if kind == "map":
            return self.fc(x).flatten(1)
        if kind == "flatten":
            return self.fc(torch.flatten(x, 1))
        if kind == "both":
            return self.fc(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        if kind == "norm":
            return self.fc(self.norm(x.mean([-2, -1])))
        if kind == "last":
            return self.fc(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))
        if kind == "window":
            return self.fc(F.avg_pool2d(x, self.size).view(-1, self.width))
        return self.fc(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        if self.kind in POOLS:
            return POOLS[self.kind](x)
        return x.mean((2, 3))


def build(spec: Spec, device: str = "meta") -> Network:
    """The network of a spec."""
    with torch.device(device):
        return Network(spec)
