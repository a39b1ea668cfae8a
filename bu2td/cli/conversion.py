"""``bu2td convert MODEL -o FILE``: a file that `bu2td.load` reads."""

from __future__ import annotations

import argparse
import json

import torch

import bu2td
from bu2td.arguments import add_input_size, add_json, add_model, check_folder, example_inputs
from bu2td.cli.structure import add_structure, structure
from bu2td.errors import OptionError
from bu2td.models import create_model
from bu2td.options import INHERITS, Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model(parser, run)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write")
    add_structure(parser)
    parser.add_argument(
        "--inherit",
        choices=INHERITS,
        help="matching: copy every weight whose role and shape survive; none: start from new ones, without a "
        "warning that trained ones are not used",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="of the model; default: its own")
    parser.add_argument(
        "--pretrained", action="store_true", help="build the model with its library's weights (may download them)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the initial weights")
    parser.add_argument(
        "--max-macs-ratio",
        type=_ratio,
        default=Options().max_macs_ratio,
        metavar="X|none",
        help="refuse a network that costs more than X times the bottom-up MACs; default: %(default)g",
    )
    add_input_size(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> str:
    """Convert and save; returns the plan."""
    check_folder(options.output)
    if options.seed is not None and 0 <= options.seed < 2**63:
        torch.manual_seed(options.seed)  # a factory's own random weights, which --inherit copies
    if options.num_classes is not None and options.num_classes < 1:
        raise OptionError(f"--num-classes {options.num_classes} must be at least 1")
    model = create_model(
        options.model, device="cpu", num_classes=options.num_classes, pretrained=options.pretrained
    )
    network = bu2td.convert(
        model,
        options.arrangement,
        example_inputs=example_inputs(options, model),
        device="cpu",
        inherit=options.inherit,
        seed=options.seed,
        max_macs_ratio=options.max_macs_ratio,
        **structure(options),
    )
    bu2td.save(network, options.output)
    if options.json:
        return json.dumps(network.plan.to_dict(), indent=2)
    return f"{network.plan}\nwritten to {options.output}"


def _ratio(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'none'") from None
