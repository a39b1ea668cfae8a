"""``bu2td inspect MODEL``: the levels of a model, and what each arrangement would cost."""

from __future__ import annotations

import argparse
import json
from typing import Any

from torch import nn

import bu2td
from bu2td.arguments import add_input_size, add_json, add_list, add_model, arrangement_word, parse_arrangements
from bu2td.cli.structure import analysis_of
from bu2td.errors import OptionError
from bu2td.ir import Analysis, Cost, Plan, format_table
from bu2td.measure import training_memory
from bu2td.options import ARRANGEMENTS

_BYTES_PER_VALUE = 4
_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model(parser, run)
    add_list(
        parser,
        "--arrangement",
        made=parse_arrangements,
        again=True,
        metavar="td|uni|rev|W,W,..",
        help="what to plan; default: td, uni and rev",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="of the memory; default: %(default)s"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="X",
        help="also propose options whose training step takes less than X times the bottom-up network's, in time or "
        "in memory, best first",
    )
    add_input_size(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> str:
    """Plan the arrangements, and measure every network on the meta device."""
    if options.batch_size < 1:
        raise OptionError(f"--batch-size {options.batch_size} must be at least 1")
    arrangements = options.arrangement or list(ARRANGEMENTS)
    analysis = analysis_of(options)
    proposals = None
    if options.budget is not None:
        proposals = bu2td.propose(analysis, options.budget, arrangements, batch_size=options.batch_size)
    networks = [
        bu2td.convert(analysis, arrangement, device="meta", max_macs_ratio=None) for arrangement in arrangements
    ]
    answer = _inspection(options, analysis, [network.plan for network in networks])
    shape = (options.batch_size, *answer["image_shape"][1:])
    source = analysis.capture.source
    answer["bottom_up"] |= {"training_mib": _training_mib(source, shape), "checkpointed_mib": None}
    for row, network in zip(answer["arrangements"], networks, strict=True):
        row["training_mib"] = _training_mib(network, shape)
        network.set_grad_checkpointing(inside=True)
        row["checkpointed_mib"] = _training_mib(network, shape)
    if options.json:
        return json.dumps(answer if proposals is None else {**answer, "proposals": proposals.to_dict()}, indent=2)
    return _inspection_text(answer) if proposals is None else f"{_inspection_text(answer)}\n\n{proposals}"


def _inspection(options: argparse.Namespace, analysis: Analysis, plans: list[Plan]) -> dict[str, Any]:
    before = plans[0].bottom_up_cost
    return {
        "model": options.model,
        "class": plans[0].model,
        "image_shape": list(plans[0].image_shape),
        "batch_size": options.batch_size,
        "bottom_up": {
            "levels": analysis.rows(),
            **_cost(before, options.batch_size),
            "notes": list(analysis.notes),
        },
        "arrangements": [
            {
                "arrangement": plan.options.arrangement,
                "reductions": list(plan.ladder),
                "widths": list(plan.widths),
                **_cost(plan.cost, options.batch_size),
                "macs_ratio": plan.cost.macs / max(before.macs, 1),
                "relaxations": [list(relaxation) for relaxation in plan.relaxations],
                "notes": [note for note in plan.notes if note not in analysis.notes],
            }
            for plan in plans
        ],
    }


def _cost(cost: Cost, batch_size: int) -> dict[str, Any]:
    memory = cost.activations * _BYTES_PER_VALUE * batch_size / _MIB
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "activations": cost.activations,
        "activation_mib": round(memory, 3),
    }


def _training_mib(network: nn.Module, shape: tuple[int, ...]) -> float | None:
    """Peak memory of a training step beside weights and images; None where it cannot be predicted."""
    try:
        return round(training_memory(network, shape).peak / _MIB, 3)
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def _inspection_text(answer: dict[str, Any]) -> str:
    before, size = answer["bottom_up"], "x".join(map(str, answer["image_shape"][1:]))
    networks = [{"arrangement": "bottom-up", **before, "macs_ratio": 1.0, "relaxations": []}]
    networks += answer["arrangements"]
    lines = [
        f"bottom-up {answer['model']} ({answer['class']}), image {size}",
        format_table(before["levels"]),
        *(f"note: {note}" for note in before["notes"]),
        "",
        "level widths, coarse to fine",
        format_table([_widths(network) for network in answer["arrangements"]]),
        "",
        f"cost: parameters, MACs for one image; float32, batch size {answer['batch_size']}: memory of forward "
        f"activations,",
        "and the peak of a training step beside weights and images, as it is and with levels recomputed",
        format_table([_summary(network) for network in networks]),
    ]
    for network in answer["arrangements"]:
        name = arrangement_word(network["arrangement"])
        lines += [f"{name}: {level}: {what}" for level, what in network["relaxations"]]
        lines += [f"{name}: note: {note}" for note in network["notes"]]
    return "\n".join(lines)


def _widths(network: dict[str, Any]) -> dict[str, Any]:
    levels = zip(network["reductions"], network["widths"], strict=True)
    return {"arrangement": arrangement_word(network["arrangement"]), **{f"r{r}": width for r, width in levels}}


def _summary(network: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": arrangement_word(network["arrangement"]),
        "parameters": network["parameters"],
        "MMACs": round(network["macs"] / 1e6, 1),
        "x bottom-up": round(network["macs_ratio"], 2),
        "activations MiB": round(network["activation_mib"], 1),
        "training MiB": _mib(network["training_mib"]),
        "recomputed MiB": "" if network["arrangement"] == "bottom-up" else _mib(network["checkpointed_mib"]),
        "relaxations": len(network["relaxations"]),
    }


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}"
