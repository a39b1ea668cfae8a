"""``bu2td zoo``: what becomes of every CNN classifier of torchvision and timm, and of other libraries'."""

from __future__ import annotations

import argparse
from pathlib import Path

from bu2td.arguments import add_json, add_list, add_run, check_folder
from bu2td.models.libraries import LIBRARIES
from bu2td.options import ARRANGEMENTS
from bu2td.zoo import DEFAULT_LIBRARIES, TIMEOUT, describe, finish, list_zoo, select, summarise, sweep

FAULTS_FOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_run(parser, run)
    add = parser.add_argument
    titles = [library.title for library in LIBRARIES.values()]
    known = f"{', '.join(titles)}; default: {', '.join(DEFAULT_LIBRARIES)}"
    add_list(parser, "--library", again=True, metavar="L", help=known)
    smallest = "one model of every family and variant: the least numbers in its name"
    add("--smallest", action="store_true", help=smallest)
    add_list(
        parser, "--family", again=True, default=[], metavar="F", help="modules of timm (resnet), or LIBRARY:MODULE"
    )
    add_list(parser, "--match", again=True, default=[], metavar="PATTERN", help="parts of names, or shell patterns")
    add_list(parser, "--arrangement", again=True, metavar="td|uni|rev", help="default: all three")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="every N-th model, from the I-th on")
    add("--jobs", type=int, default=1, metavar="N", help="processes at work; default: %(default)s")
    add("--no-real", dest="real", action="store_false", help="run nothing on real tensors, plan and verify only")
    add(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="S",
        help="seconds for one conversion; default: %(default)s",
    )
    add("-o", "--output", default="zoo.csv", metavar="FILE.csv", help="default: %(default)s; a summary in .json")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="keep the rows that FILE has, and do the others")
    existing.add_argument("--fresh", action="store_true", help="replace FILE")
    add_json(parser)


def run(options: argparse.Namespace) -> str:
    """Sweep; ``options.status`` says whether a network failed."""
    check_folder(options.output)
    zoo = list_zoo(options.library or DEFAULT_LIBRARIES, smallest=options.smallest)
    models = select(zoo, options.family, options.match, options.shard)
    steps = sweep(
        models,
        options.arrangement or ARRANGEMENTS,
        file=Path(options.output),
        resume=options.resume,
        fresh=options.fresh,
        jobs=options.jobs,
        real=options.real,
        timeout=options.timeout,
    )
    rows = finish(steps)
    if any(row.status == "failed" for row in rows):
        options.status = FAULTS_FOUND
    summary = Path(options.output).with_suffix(".json")
    if options.json:
        return summary.read_text(encoding="utf-8").rstrip()
    return f"{describe(summarise(rows))}\nwritten to {options.output} and {summary}"


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N in whole numbers")
    return int(index), int(count)
