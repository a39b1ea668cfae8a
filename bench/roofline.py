"""How close a network is to the bound of its convolutions, level by level; and the rates of a machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import bu2td

#: Seconds of one step, of a number in a row.
Timer = Callable[[Callable[[], Any], int], float]

#: What a convolution is: shapes of input and weight, whether it has a bias, and aten's other arguments.
Conv = tuple[tuple[int, ...], tuple[int, ...], bool, tuple[Any, ...]]


class _Convs(TorchDispatchMode):
    """Notes the convolutions and multiply-accumulates of every level."""

    def __init__(self) -> None:
        super().__init__()
        self.level = ""
        self.convs: dict[str, list[Conv]] = {}
        self.macs: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            macs = int(formula(*args, **(kwargs or {}), out_val=out)) // 2
            self.macs[self.level] = self.macs.get(self.level, 0) + macs
        if func is torch.ops.aten.convolution.default:
            x, weight, bias, *rest = args
            conv = (tuple(x.shape), tuple(weight.shape), bias is not None, tuple(_freeze(value) for value in rest))
            self.convs.setdefault(self.level, []).append(conv)
        return out


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


class _ByLevel(fx.Interpreter):
    """Runs the top graph and tells which level it is in."""

    def __init__(self, network: bu2td.TopDownNetwork, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        super().__init__(network)
        self.around, self.owners = around, owners(network)

    def run_node(self, n: fx.Node) -> Any:
        call = super().run_node
        if n.op not in ("call_module", "call_function", "call_method"):
            return call(n)
        return self.around(self.owners.get(n.name, n.name), lambda: call(n))


def owners(network: bu2td.TopDownNetwork) -> dict[str, str]:
    """The level of every call that belongs to one."""
    return {call: f"r{stage.reduction}" for stage in network.stages.levels for call in (stage.image, *stage.calls)}


def convolutions(network: bu2td.TopDownNetwork, images: Tensor) -> _Convs:
    """The convolutions of every level.

    Fused calls are one operation that no counter knows; where a gradient of the images is wanted, the same network
    runs as plain convolutions.
    """
    seen = _Convs()

    def around(level: str, call: Callable[[], Any]) -> Any:
        seen.level = level
        return call()

    with seen:
        _ByLevel(network, around).run(images.clone().requires_grad_())
    return seen


def _direct(conv: Conv, device: torch.device) -> Callable[[], Any]:
    shape, kernel, has_bias, rest = conv
    last = torch.channels_last
    x = torch.rand(shape, device=device).contiguous(memory_format=last)
    weight = torch.rand(kernel, device=device).contiguous(memory_format=last)
    transposed, groups = rest[3], rest[5]
    bias = torch.rand(kernel[1] * groups if transposed else kernel[0], device=device) if has_bias else None

    def step() -> Any:
        with torch.inference_mode():
            return torch.ops.aten.convolution.default(x, weight, bias, *rest)

    return step


def _level_seconds(network: fx.GraphModule, images: Tensor, timer: Timer) -> dict[str, float]:
    spent: dict[str, float] = {}

    def around(level: str, call: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        spent[level] = spent.get(level, 0.0) + timer(lambda: kept.append(call()), 1)
        return kept[0]

    with torch.inference_mode():
        _ByLevel(network, around).run(images)
    return spent


def _filtered(network: Any, level: str) -> int:
    """Multiply-accumulates for one image that minimal filtering saves in a level."""
    made = [rewrite for rewrite in network.optimization.made if rewrite.rule == "winograd"]
    home = owners(network)
    sites = {r.site: r.macs for r in made if home.get(r.site.partition(".")[0]) == level}
    return sum(before - after for before, after in sites.values())


def levels(
    network: bu2td.TopDownNetwork, ours: bu2td.TopDownNetwork, images: Tensor, timer: Timer, repeat: int
) -> list[dict[str, Any]]:
    """A row per level of a network; multiply-accumulates are those of one image, times those of the batch.

    Args:
        network: as converted, in eval mode or not; it is put into eval mode.
        ours: the same network, optimised for inference.
        images: (N, C, H, W).
        timer: measures.
        repeat: rounds; times are medians.
    """
    before, after = convolutions(network.eval(), images), convolutions(ours, images)
    plain: dict[Conv, float] = {}
    for conv in {conv for convs in after.convs.values() for conv in convs}:
        step = _direct(conv, images.device)
        timer(step, 1)
        count = max(1, int(0.02 / max(timer(step, 1), 1e-7)))
        plain[conv] = statistics.median(timer(step, count) for _ in range(repeat))
    _level_seconds(ours, images, timer)
    rounds = [_level_seconds(ours, images, timer) for _ in range(max(repeat, 5))]
    rows = []
    for level in rounds[0]:
        seconds = statistics.median(spent[level] for spent in rounds)
        bound = sum(plain[conv] for conv in after.convs.get(level, []))
        direct = after.macs.get(level, 0)
        left = direct - len(images) * _filtered(ours, level)
        rows.append(
            {
                "level": level,
                "MMACs": round(before.macs.get(level, 0) / len(images) / 1e6, 2),
                "MMACs_left": round(left / len(images) / 1e6, 2),
                "level_ms": round(1e3 * seconds, 3),
                "plain_convs_ms": round(1e3 * bound, 3),
                "GMACs_per_s": round(left / seconds / 1e9, 2),
                "plain_GMACs_per_s": round(direct / bound / 1e9, 2) if bound else "",
                "share": round(bound / seconds, 3) if bound else "",
            }
        )
    return rows


# --- the rates of a machine ---------------------------------------------------------------------------

#: (channels, side, kernel) of dense convolutions as top-down networks have them.
SHAPES = (
    (512, 7, 3),
    (256, 14, 3),
    (128, 28, 3),
    (64, 56, 3),
    (64, 112, 3),
    (64, 224, 3),
    (256, 56, 1),
    (64, 112, 1),
)
#: (channels, side) of maps that are added and concatenated.
MAPS = ((256, 56), (64, 112), (64, 224), (128, 224))


def rates(device: torch.device, timer: Timer, repeat: int) -> list[dict[str, Any]]:
    """Multiply-accumulates per second of convolutions, bytes per second of sums and concatenations; in 1e9."""
    rows = []
    for channels, side, kernel in SHAPES:
        rest = ((1, 1), (kernel // 2, kernel // 2), (1, 1), False, (0, 0), 1)
        step = _direct(((1, channels, side, side), (channels, channels, kernel, kernel), False, rest), device)
        macs = channels**2 * kernel**2 * side**2
        rows.append(
            _rate("macs", f"conv {kernel}x{kernel}, {channels} channels, {side}x{side}", macs, step, timer, repeat)
        )
    for channels, side in MAPS:
        maps = [torch.rand(1, channels, side, side, device=device) for _ in range(2)]
        x, y = (one.contiguous(memory_format=torch.channels_last) for one in maps)
        half = F.interpolate(x, scale_factor=0.5)
        size = 4 * x.numel()
        steps: dict[str, tuple[float, Callable[[], Any]]] = {
            "sum": (3 * size, lambda x=x, y=y: x + y),  # type: ignore[misc]
            "concatenation": (4 * size, lambda x=x, y=y: torch.cat([x, y], 1)),  # type: ignore[misc]
            "upsampling": (1.25 * size, lambda h=half: F.interpolate(h, scale_factor=2)),  # type: ignore[misc]
        }
        for what, (moved, step) in steps.items():
            rows.append(_rate("bytes", f"{what}, {channels} channels, {side}x{side}", moved, step, timer, repeat))
    return rows


def _rate(
    what: str, name: str, amount: float, step: Callable[[], Any], timer: Timer, repeat: int
) -> dict[str, Any]:
    timer(step, 2)
    count = max(1, int(0.02 / max(timer(step, 1), 1e-7)))
    seconds = statistics.median(timer(step, count) for _ in range(repeat))
    return {
        "what": what,
        "of": name,
        "ms": round(1e3 * seconds, 4),
        "giga_per_second": round(amount / seconds / 1e9, 2),
    }
