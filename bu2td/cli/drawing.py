"""``bu2td draw MODEL -o FILE.png``: both networks side by side."""

from __future__ import annotations

import argparse

import bu2td
from bu2td.arguments import add_input_size, add_model
from bu2td.cli.structure import add_structure, analysis_of, structure
from bu2td.draw import check_path, draw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model(parser, run)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write, .png or .svg")
    parser.add_argument("--title", metavar="TEXT", help="a line above the figure; default: none")
    add_structure(parser)
    add_input_size(parser)


def run(options: argparse.Namespace) -> str:
    """Plan the network, and draw it."""
    check_path(options.output)
    analysis = analysis_of(options)
    network = bu2td.convert(analysis, options.arrangement, device="meta", max_macs_ratio=None, **structure(options))
    draw(network, options.output, title=options.title)
    return f"written to {options.output}"
