"""What commands that plan a network share: the options of `bu2td.convert` that shape it."""

from __future__ import annotations

import argparse
from typing import Any

import bu2td
from bu2td.arguments import add_list, example_inputs, numbers, parse_arrangement
from bu2td.ir import Analysis
from bu2td.models import create_model
from bu2td.nn import REDUCERS, UPSAMPLE_MODES
from bu2td.options import Options

_DEFAULTS = Options()
_NAMES = (
    *("width", "stem", "reductions", "finest_reduction", "upsample"),
    *("merge", "merge_kernel", "pyramid", "sigma"),
)


def add_structure(parser: argparse.ArgumentParser) -> None:
    """Add them; `bu2td.convert` checks their values itself."""
    group = parser.add_argument_group("the top-down network")
    add = group.add_argument
    add_list(
        group,
        "--arrangement",
        made=parse_arrangement,
        default=_DEFAULTS.arrangement,
        metavar="td|uni|rev|W,W,..",
        help="which level gets which widths, or the widths, coarse to fine; default: %(default)s",
    )
    add("--width", type=int, metavar="N", help="common width of arrangement uni")
    add("--stem", default=_DEFAULTS.stem, metavar="mirror|coarse", help="default: %(default)s")
    made = numbers(None, "32,16,..")
    add_list(group, "--reductions", made=made, numbers=True, metavar="32,16,..", help="the reductions to keep")
    add(
        "--finest-reduction",
        type=int,
        default=_DEFAULTS.finest_reduction,
        metavar="R",
        help="where to stop; default: %(default)s, the image size",
    )
    add("--upsample", default=_DEFAULTS.upsample, metavar="|".join(UPSAMPLE_MODES), help="default: %(default)s")
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


def structure(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, the arrangement aside."""
    return {name: getattr(options, name) for name in _NAMES}


def analysis_of(options: argparse.Namespace) -> Analysis:
    """The analysis of the model that was asked for, on the meta device."""
    model = create_model(options.model, device="meta")
    return bu2td.analyze(model, example_inputs=example_inputs(options, model))
