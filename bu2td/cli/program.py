"""The command line: ``bu2td`` with `inspect`, `convert`, `export`, `draw`, `zoo`, `erf`, `evaluate` or `doctor`.

A command is a module, imported when it is chosen: `bu2td.arguments.ABOUT` has the settings of its parser,
``add_arguments`` fills it, and ``run`` answers. Everything runs inside `main`, which turns an error of bu2td into
one line on stderr and exit status 2. A command returns its answer as text; until then stdout is closed to everybody
else (a model's own code may print), so that ``--json`` is JSON and nothing but JSON.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Sequence

from bu2td.arguments import ABOUT, Parser, respond, stoppable
from bu2td.version import __version__

#: Where each command is.
COMMANDS = {
    "inspect": "bu2td.cli.inspection",
    "convert": "bu2td.cli.conversion",
    "export": "bu2td.cli.exporting",
    "draw": "bu2td.cli.drawing",
    "zoo": "bu2td.cli.zoo",
    "erf": "bu2td.erf.command",
    "evaluate": "bu2td.evaluate.command",
    "doctor": "bu2td.cli.doctor",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words behind the program's name; by default those of this process.

    Returns:
        The exit status: 0, 1 where `zoo` or `doctor` found faults, 2 for an error that bu2td names, 130 when
        interrupted, 141 when the reader of a pipe has gone.

    Raises:
        SystemExit: by argparse, for ``--help``, ``--version`` (status 0) and malformed arguments (status 2).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with stoppable():
        parser = build_parser([word for word in words if word in COMMANDS][:1])
    return respond(parser.parse_args(words))


def build_parser(chosen: Collection[str] = tuple(COMMANDS)) -> Parser:
    """The parser, with the arguments of the chosen commands alone; the others are only named."""
    parser = Parser(prog="bu2td", description="Turn a bottom-up convolutional network into its top-down network.")
    parser.add_argument("--version", action="version", version=f"bu2td {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, **ABOUT[name])
        if name in chosen:
            importlib.import_module(module).add_arguments(command)
    return parser
