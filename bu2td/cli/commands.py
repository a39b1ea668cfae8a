"""The command line: ``bu2td`` with `inspect`, `convert`, `draw`, `zoo`, `erf` or `evaluate`.

Everything runs inside `main`, which turns an error of bu2td into one line on stderr and exit status 2. A
command returns its answer as text; until then stdout is closed to everybody else (a model's own code may
print), so that ``--json`` is JSON and nothing but JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bu2td
from bu2td.arguments import (
    Parser,
    add_input_size,
    add_json,
    arrangement_word,
    check_folder,
    command,
    example_inputs,
    numbers,
    parse_arrangement,
    respond,
)
from bu2td.draw import check_path, draw
from bu2td.erf.command import ABOUT as ERF
from bu2td.erf.command import add_arguments as add_erf
from bu2td.errors import OptionError
from bu2td.evaluate.command import ABOUT as EVALUATE
from bu2td.evaluate.command import add_arguments as add_evaluate
from bu2td.ir.bottom_up import Analysis
from bu2td.ir.plan import Cost, Plan
from bu2td.ir.tables import format_table
from bu2td.measure.memory import training_memory
from bu2td.models.words import create_model
from bu2td.nn import REDUCERS, UPSAMPLE_MODES
from bu2td.options import ARRANGEMENTS, Options
from bu2td.zoo.sweep import describe, finish, summarise, sweep
from bu2td.zoo.zoo import list_zoo, select

FAULTS_FOUND = 1
_BYTES_PER_VALUE = 4
_MIB = 2**20
_DEFAULTS = Options()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words behind the program's name; by default those of this process.

    Returns:
        The exit status: 0, 1 where `zoo` found faults, 2 for an error that bu2td names, 130 when
        interrupted, 141 when the reader of a pipe has gone.

    Raises:
        SystemExit: by argparse, for ``--help``, ``--version`` (status 0) and malformed arguments (status 2).
    """
    return respond(_parser().parse_args(arguments))


# --- the commands -------------------------------------------------------------------------------------


def _inspect(options: argparse.Namespace) -> str:
    if options.batch_size < 1:
        raise OptionError(f"--batch-size {options.batch_size} must be at least 1")
    arrangements = options.arrangement or list(ARRANGEMENTS)
    analysis = _analysis(options)
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
    return json.dumps(answer, indent=2) if options.json else _inspection_text(answer)


def _convert(options: argparse.Namespace) -> str:
    check_folder(options.output)
    if options.seed is not None and 0 <= options.seed < 2**63:
        torch.manual_seed(options.seed)  # a factory's own random weights, which --inherit copies
    model = create_model(options.model, device="cpu")
    network = bu2td.convert(
        model,
        options.arrangement,
        example_inputs=example_inputs(options, model),
        device="cpu",
        inherit=options.inherit,
        seed=options.seed,
        max_macs_ratio=options.max_macs_ratio,
        **_structure(options),
    )
    bu2td.save(network, options.output)
    if options.json:
        return json.dumps(network.plan.to_dict(), indent=2)
    return f"{network.plan}\nwritten to {options.output}"


def _draw(options: argparse.Namespace) -> str:
    check_path(options.output)
    analysis = _analysis(options)
    network = bu2td.convert(
        analysis, options.arrangement, device="meta", max_macs_ratio=None, **_structure(options)
    )
    draw(network, options.output, title=options.title)
    return f"written to {options.output}"


def _zoo(options: argparse.Namespace) -> str:
    check_folder(options.output)
    models = select(list_zoo(), options.family, options.match, options.shard)
    steps = sweep(
        models,
        options.arrangement or ARRANGEMENTS,
        file=Path(options.output),
        resume=options.resume,
        fresh=options.fresh,
        jobs=options.jobs,
        real=options.real,
    )
    rows = finish(steps)
    if any(row.status == "failed" for row in rows):
        options.status = FAULTS_FOUND
    summary = Path(options.output).with_suffix(".json")
    if options.json:
        return summary.read_text(encoding="utf-8").rstrip()
    return f"{describe(summarise(rows))}\nwritten to {options.output} and {summary}"


def _analysis(options: argparse.Namespace) -> Analysis:
    model = create_model(options.model, device="meta")
    return bu2td.analyze(model, example_inputs=example_inputs(options, model))


def _structure(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        "width",
        "stem",
        "reductions",
        "finest_reduction",
        "upsample",
        "merge",
        "merge_kernel",
        "pyramid",
        "sigma",
    )
    return {name: getattr(options, name) for name in names}


# --- what inspect reports -----------------------------------------------------------------------------


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


# --- arguments ----------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(prog="bu2td", description="Turn a bottom-up convolutional network into its top-down network.")
    parser.add_argument("--version", action="version", version=f"bu2td {bu2td.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_convert(commands)
    _add_draw(commands)
    _add_zoo(commands)
    add_erf(commands.add_parser("erf", **ERF))
    add_evaluate(commands.add_parser("evaluate", **EVALUATE))
    return parser


def _add_inspect(commands: Any) -> None:
    parser = command(commands, "inspect", _inspect, "show the levels of a model and what each arrangement costs")
    parser.add_argument(
        "--arrangement",
        action="append",
        type=parse_arrangement,
        metavar="td|uni|rev|W,W,..",
        help="what to plan; repeatable; default: td, uni and rev",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="of the memory; default: %(default)s",
    )
    add_input_size(parser)
    add_json(parser)


def _add_convert(commands: Any) -> None:
    parser = command(commands, "convert", _convert, "convert a model and save the network (bu2td.load reads it)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write")
    _add_structure(parser)
    parser.add_argument(
        "--inherit",
        choices=("matching",),
        help="copy every weight whose role and shape survive (a factory may load trained ones)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the initial weights")
    parser.add_argument(
        "--max-macs-ratio",
        type=_ratio,
        default=_DEFAULTS.max_macs_ratio,
        metavar="X|none",
        help="refuse a network that costs more than X times the bottom-up MACs; default: %(default)g",
    )
    add_input_size(parser)
    add_json(parser)


def _add_draw(commands: Any) -> None:
    parser = command(commands, "draw", _draw, "draw the bottom-up and the top-down network side by side")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write, .png or .svg")
    parser.add_argument("--title", metavar="TEXT", help="a line above the figure; default: none")
    _add_structure(parser)
    add_input_size(parser)


def _add_zoo(commands: Any) -> None:
    text = "convert every CNN classifier of torchvision and timm, and keep what became of each in a table"
    parser = command(commands, "zoo", _zoo, text, model=False)
    parser.epilog = (
        "Exit status: 0, refused networks included; 1 where a network failed, which is a fault of bu2td; 2 for an "
        "error. A sweep that was stopped goes on with --resume; rows deleted from FILE run again. Shards that run "
        "at the same time need files of their own; joined by cat, they make one FILE."
    )
    add = parser.add_argument
    listed: dict[str, Any] = {"nargs": "+", "action": "extend"}
    add("--family", **listed, default=[], metavar="F", help="modules of timm (resnet), or torchvision:MODULE")
    add("--match", **listed, default=[], metavar="PATTERN", help="parts of names, or shell patterns")
    add("--arrangement", **listed, metavar="td|uni|rev", help="default: all three")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th model, from the I-th on")
    add("--jobs", type=int, default=1, metavar="N", help="processes at work; default: %(default)s")
    add("--no-real", dest="real", action="store_false", help="run nothing on real tensors, plan and verify only")
    add("-o", "--output", default="zoo.csv", metavar="FILE.csv", help="default: %(default)s; a summary in .json")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="keep the rows that FILE has, and do the others")
    existing.add_argument("--fresh", action="store_true", help="replace FILE")
    add_json(parser)


def _add_structure(parser: Any) -> None:
    """The options of `bu2td.convert` that shape the network; it checks their values itself."""
    group = parser.add_argument_group("the top-down network")
    add = group.add_argument
    add(
        "--arrangement",
        type=parse_arrangement,
        default=_DEFAULTS.arrangement,
        metavar="td|uni|rev|W,W,..",
        help="which level gets which widths, or the widths, coarse to fine; default: %(default)s",
    )
    add("--width", type=int, metavar="N", help="common width of arrangement uni")
    add("--stem", default=_DEFAULTS.stem, metavar="mirror|coarse", help="default: %(default)s")
    add("--reductions", type=numbers(None, "32,16,.."), metavar="32,16,..", help="the reductions to keep")
    add(
        "--finest-reduction",
        type=int,
        default=_DEFAULTS.finest_reduction,
        metavar="R",
        help="where to stop; default: %(default)s, the image size",
    )
    add(
        "--upsample",
        default=_DEFAULTS.upsample,
        metavar="|".join(UPSAMPLE_MODES),
        help="default: %(default)s",
    )
    add("--merge", default=_DEFAULTS.merge, metavar="add_concat|add|concat", help="default: %(default)s")
    add(
        "--merge-kernel",
        type=int,
        default=_DEFAULTS.merge_kernel,
        metavar="K",
        help="kernel of the merge's conv, odd; default: %(default)s",
    )
    add("--pyramid", default=_DEFAULTS.pyramid, metavar="|".join(REDUCERS), help="default: %(default)s")
    add(
        "--sigma",
        type=float,
        default=_DEFAULTS.sigma,
        metavar="S",
        help="blur of the Gaussian pyramid in units of the reduction; default: %(default)s",
    )


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N in whole numbers")
    return int(index), int(count)


def _ratio(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'none'") from None
