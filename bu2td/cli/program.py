"""The command line: ``bu2td`` with `inspect`, `convert`, `export`, `draw`, `zoo`, `erf` or `evaluate`.

A command is a module: ``ABOUT`` are the settings of its parser, ``add_arguments`` fills it, and ``run`` answers.
Everything runs inside `main`, which turns an error of bu2td into one line on stderr and exit status 2. A
command returns its answer as text; until then stdout is closed to everybody else (a model's own code may
print), so that ``--json`` is JSON and nothing but JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bu2td
import bu2td.erf.command
import bu2td.evaluate.command
from bu2td.arguments import Parser, respond
from bu2td.cli import conversion, drawing, exporting, inspection, zoo

COMMANDS: dict[str, Any] = {
    "inspect": inspection,
    "convert": conversion,
    "export": exporting,
    "draw": drawing,
    "zoo": zoo,
    "erf": bu2td.erf.command,
    "evaluate": bu2td.evaluate.command,
}


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


def _parser() -> Parser:
    parser = Parser(prog="bu2td", description="Turn a bottom-up convolutional network into its top-down network.")
    parser.add_argument("--version", action="version", version=f"bu2td {bu2td.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, **command.ABOUT))
    return parser
