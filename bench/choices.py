"""Whether the cost model of `bu2td.optimize` chooses well: its gains beside measured ones, over shapes.

    python bench/choices.py [--repeat 9] [--match winograd]

A row is a rewrite of one convolution: ``upsample_conv`` (k x k over a nearest-upsampled map, factor 2) or
``winograd`` (3x3), as inference computes it (fused, weights laid out once) or as a training step does (forward and
backward, weights summed or transformed in every step). ``model`` is the gain that the model predicts, ``measured``
the median over rounds of the old form's time over the new one's in the same round, ``chosen`` what the model does,
and ``lost`` the share of the better form's time that this costs. Times are CPU seconds on one thread. Writes
bench/results/choices.csv and .json after every row, and goes on where it was stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import _results
import speed
import torch
from torch import Tensor, nn

from bu2td.ir import format_table
from bu2td.nn import Upsample
from bu2td.optimization.cost_model import Chooser, Form
from bu2td.optimization.fuse import ConvDraft
from bu2td.optimization.kernels import UpsampledConv2d, WinogradConv2d
from bu2td.optimization.simplify import conv_forms, winograd_forms

COLUMNS = ("rule", "mode", "inputs", "outputs", "kernel", "groups", "side", "batch")
#: (inputs, outputs, kernel, groups, side of the map that is read, batch) as top-down networks have them.
SHAPES = {
    "upsample_conv": [
        *((512, 256, 3, 1, 7, batch) for batch in (1, 8, 32)),
        *((256, 128, 3, 1, 14, batch) for batch in (1, 8)),
        *((64, 64, 3, 1, 56, batch) for batch in (1, 8)),
        *((width, width, 3, 1, 28, 8) for width in (6, 16, 32, 128)),
        *((48, 48, 5, 1, 14, batch) for batch in (1, 32)),
        *((192, 192, kernel, 192, 14, batch) for kernel in (3, 5) for batch in (1, 8)),
        (512, 256, 1, 1, 7, 8),
    ],
    "winograd": [
        *((width, width, 3, 1, 14, batch) for width in (64, 128, 256, 512) for batch in (1, 8)),
        *((width, width, 3, 1, 56, 4) for width in (32, 64, 128)),
        *((512, 512, 3, 1, 7, batch) for batch in (1, 4)),
        (64, 64, 3, 1, 112, 4),
    ],
}


def arms(rule: str, mode: str, conv: nn.Conv2d, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The old form and the new one of a convolution; each returns its result and, in training, both gradients."""
    up = Upsample("nearest")
    like = torch.empty(1, 1, 2 * x.shape[-2], 2 * x.shape[-1])
    new: Any = WinogradConv2d(conv) if rule == "winograd" else UpsampledConv2d(conv, 2)
    old: Any = conv
    if mode == "inference" and conv.kernel_size != (1, 1):  # a 1x1 convolution is not fused with its upsampling
        draft = ConvDraft.of(conv)
        assert draft is not None
        old, new = draft.build(), draft.build("winograd" if rule == "winograd" else "low", new)
    forms: list[Callable[[Tensor], Tensor]] = [old, new]
    if rule == "upsample_conv":
        forms = [lambda x: old(up(x, like)), lambda x: new(x, like=like)]

    def infer(form: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return (form(x),)

    def train(form: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        given = x.detach().requires_grad_()
        y = form(given)
        gradient = torch.ones_like(y, memory_format=torch.channels_last)
        return (y, *torch.autograd.grad(y, (given, conv.weight), gradient))

    run = infer if mode == "inference" else train
    return {"old": partial(run, forms[0]), "new": partial(run, forms[1])}


def predicted(rule: str, mode: str, conv: nn.Conv2d, side: int, batch: int) -> tuple[float, bool]:
    """The model's gain, and whether it chooses the new form."""
    training = mode == "training"
    if rule == "winograd":
        pairs, channels = conv.in_channels * conv.out_channels, conv.in_channels + conv.out_channels
        forms: tuple[Form, Form] = winograd_forms(pairs, channels, (side, side), training=training)
    else:
        forms = conv_forms(conv, (side, side), 2, training)
    choose = Chooser(mode, "cpu", batch)
    chosen = choose(rule, "conv", *forms)
    gain = choose.made[0].gain
    assert gain is not None
    return gain, chosen


def run(rule: str, mode: str, *numbers: str, settings: speed.Settings) -> list[dict[str, Any]]:
    inputs, outputs, kernel, groups, side, batch = map(int, numbers)
    torch.manual_seed(0)
    last = torch.channels_last
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False).to(memory_format=last)
    x = torch.rand(batch, inputs, side, side).contiguous(memory_format=last)
    times = speed.compare(arms(rule, mode, conv, x), settings)
    measured = statistics.median(a / b for a, b in zip(times["old"], times["new"], strict=True))
    gain, chosen = predicted(rule, mode, conv, side, batch)
    return [
        {
            **dict(zip(COLUMNS, (rule, mode, *numbers), strict=True)),
            "old_ms": round(1e3 * statistics.median(times["old"]), 3),
            "new_ms": round(1e3 * statistics.median(times["new"]), 3),
            "measured": round(measured, 3),
            "model": round(gain, 3),
            "chosen": chosen,
            "lost": round(max(0.0, (1 / measured if chosen else measured) - 1), 3),
        }
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each rule and mode: how often the model chose the faster form, and what its choices cost."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["mode"]), []).append(row)
    return {
        "choices": [
            {
                "rule": rule,
                "mode": mode,
                "shapes": len(found),
                "faster_form": sum((row["measured"] > 1) == row["chosen"] for row in found),
                "mean_lost": round(statistics.mean(row["lost"] for row in found), 3),
                "most_lost": max(row["lost"] for row in found),
                "mean_log_error": round(
                    statistics.mean(abs(math.log(row["model"] / row["measured"])) for row in found), 3
                ),
            }
            for (rule, mode), found in groups.items()
        ]
    }


def main() -> None:
    parser = _results.parser(__doc__, "choices")
    parser.add_argument("--repeat", type=int, default=9, metavar="N", help="rounds; default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = speed.Settings(args.repeat, torch.device("cpu"), 1)
    jobs = [
        (rule, mode, *map(str, numbers))
        for rule, shapes in SHAPES.items()
        if args.match in rule
        for mode in ("inference", "training")
        for numbers in shapes
    ]
    about = {
        "device": _results.processor(),
        "threads": 1,
        "repeat": args.repeat,
        "packages": _results.versions("torch", "bu2td"),
    }
    rows = _results.sweep(args, COLUMNS, jobs, partial(run, settings=settings), summary, **about)
    print(format_table(rows))
    print(format_table(summary(rows)["choices"]))


if __name__ == "__main__":
    main()
