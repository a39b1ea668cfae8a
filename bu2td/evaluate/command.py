"""``bu2td evaluate STAGE``, also ``python -m bu2td.evaluate STAGE``: the paper's experiments on any model."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bu2td.arguments import ABOUT, Parser, add_json, add_list, respond
from bu2td.errors import OptionError
from bu2td.evaluate.settings import FIELDS, check, converted, flag_type, given, list_presets, read_settings, to_yaml
from bu2td.ir import format_table

_STAGES = {
    "all": "train, attack, corrupt, look at frequencies, explain, and write the report",
    "train": "train every network, several times, and measure its test accuracy (experiment 1)",
    "search": "search learning rate, batch size and weight decay on the validation images, one after the other",
    "robustness": "attack trained networks, and find which pyramid branch is vulnerable (experiment 2)",
    "corruptions": "measure accuracy under noise, blur, contrast loss and pixelation",
    "frequency": "sensitivity by spatial frequency, spectra of the attacks, accuracy on filtered images",
    "explain": "Grad-CAM, localisation, pointing game, deletion and insertion of trained networks (experiment 3)",
    "merge": "put the folders of shards together in one, and write its tables",
    "report": "write report.html, report.md and report.json of what there is",
    "presets": "list the presets, or print one as a configuration file",
}
_MAKES = ("all", "train", "search")  # stages that make a folder
_GROUPS = {
    "all": ("data", "training", "robustness", "corruptions", "frequency", "explain", "machine"),
    "train": ("data", "training", "machine"),
    "search": ("data", "training", "machine"),
    "robustness": ("robustness", "machine"),
    "corruptions": ("corruptions", "robustness", "machine"),
    "frequency": ("frequency", "robustness", "machine"),
    "explain": ("explain", "machine"),
    "merge": ("machine",),
}
_TITLES = {
    "data": "what is compared",
    "training": "training",
    "robustness": "robustness",
    "corruptions": "corruptions",
    "frequency": "frequency",
    "explain": "explanation",
    "machine": "machine",
}
_VARIED = ("lr", "batch_size", "weight_decay")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see `bu2td.arguments.respond`."""
    parser = Parser(prog="python -m bu2td.evaluate", **{k: v for k, v in ABOUT["evaluate"].items() if k != "help"})
    add_arguments(parser)
    return respond(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stages and their arguments."""
    stages = parser.add_subparsers(title="stages", metavar="STAGE", required=True, parser_class=Parser)
    for stage, text in _STAGES.items():
        own = stages.add_parser(stage, help=text, description=f"{text[0].upper()}{text[1:]}.")
        own.set_defaults(run=_RUN.get(stage, _run), parser=own, status=0, stage=stage)
        if stage == "presets":
            own.add_argument("name", nargs="?", metavar="NAME", help="the preset to print")
            continue
        own.add_argument("-o", "--output", default="out/evaluate", metavar="FOLDER", help="default: %(default)s")
        if stage == "merge":
            own.add_argument("folders", nargs="+", metavar="FOLDER", help="of the shards")
        elif stage != "report":
            _add_ways(own, stage)
        _add_settings(own, stage)
        add_json(own)


def _add_ways(parser: Any, stage: str) -> None:
    """How a stage goes about its work."""
    if stage in _MAKES:
        parser.add_argument("--preset", metavar="NAME", help="bu2td evaluate presets lists them")
        parser.add_argument("--download", action="store_true", help="fetch torchvision's data sets where missing")
    parser.add_argument("-c", "--config", metavar="FILE", help="settings as YAML")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the run in FOLDER, with its settings")
    parser.set_defaults(preset=None, download=False, overwrite=False)
    if stage == "search":
        return
    existing.add_argument("--overwrite", action="store_true", help="move earlier results aside, and start anew")
    parser.add_argument(
        "--shard", metavar="K/N", help="do the K-th of N shares (1/4 to 4/4), here or on N machines"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would cost, by a short probe, and do nothing"
    )
    parser.add_argument(
        "--no-estimate", action="store_true", help="do not say what a preset will cost before it starts"
    )


def _add_settings(parser: Any, stage: str) -> None:
    for group in _GROUPS.get(stage, ()):
        section = parser.add_argument_group(_TITLES[group])
        for name, field in FIELDS.items():
            if field.metadata["group"] == group:
                _add_field(section, name, several=stage == "search" and name in _VARIED)


def _add_field(section: Any, name: str, several: bool) -> None:
    """A flag of a setting; it is absent from the answer where it was not given."""
    meta, kind = FIELDS[name].metadata, flag_type(name)
    words = [*meta.get("flags", ()), "--" + name.replace("_", "-")]
    if name.endswith("arrangements") or name == "attacks":
        words.append(words[-1].removesuffix("s"))
    common: dict[str, Any] = {"dest": f"set_{name}", "default": argparse.SUPPRESS, "help": meta["help"]}
    if kind == "bool":
        section.add_argument(*words, action=argparse.BooleanOptionalAction, **common)
    elif kind in ("list", "mapping") or several:
        metavar = "KEY=VALUE" if kind == "mapping" else "VALUE" if several else "X"
        numbers = several or FIELDS[name].type in ("tuple[int, ...] | None", "tuple[float, ...]")
        add_list(section, *words, numbers=numbers, metavar=metavar, **common)
    else:
        choices = meta.get("choices")
        section.add_argument(*words, metavar="|".join(choices) if choices else "X", **common)


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    found: dict[str, Any] = {}
    for key, value in vars(options).items():
        name = key.removeprefix("set_")
        if key != name:
            found[name] = _pairs(name, value) if flag_type(name) == "mapping" else value
    return found


def _pairs(name: str, words: Sequence[str]) -> Mapping[str, Any]:
    """KEY=VALUE; items without = belong to the value before, which is then a list."""
    found: dict[str, list[Any]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not found:
            raise OptionError(f"--{name.replace('_', '-')} {word}: expected KEY=VALUE")
        if equals:
            found[key] = [_literal(value)]
        else:
            found[[*found][-1]].append(_literal(word))
    return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def _literal(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


# --- the stages ---------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> str:
    from bu2td.evaluate.run import evaluate

    answer = evaluate(
        options.stage,
        _given(options, _flags(options)),
        Path(options.output),
        resume=options.resume,
        overwrite=options.overwrite,
        download=options.download,
        preset=options.preset,
        shard=options.shard,
        estimate=options.preset is not None and not options.no_estimate,
        dry_run=options.dry_run,
    )
    return _respond(options, answer)


def _given(options: argparse.Namespace, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, checked, without defaults for those that were not."""
    check(read_settings(options.preset, options.config, flags))
    return given(options.preset, options.config, flags)


def _search(options: argparse.Namespace) -> str:
    from bu2td.evaluate.run import run_search

    flags = _flags(options)
    grid = {}
    for name in _VARIED:
        values = tuple(dict.fromkeys(converted(name, value) for value in flags.pop(name, [])))
        if len(values) > 1:
            grid[name] = values
        elif values:
            flags[name] = values[0]
    changes = _given(options, flags)
    answer = run_search(changes, grid, Path(options.output), resume=options.resume, download=options.download)
    return _respond(options, answer)


def _merge(options: argparse.Namespace) -> str:
    from bu2td.evaluate.merge import merge

    written = merge(options.folders, Path(options.output), _flags(options))
    return json.dumps({"tables": {}, "written": written}) if options.json else "\n".join(written)


def _report(options: argparse.Namespace) -> str:
    from bu2td.evaluate.report.writing import write_report

    path = write_report(Path(options.output))
    return json.dumps({"report": str(path)}) if options.json else f"written to {path}"


def _presets(options: argparse.Namespace) -> str:
    if options.name is not None:
        return to_yaml(read_settings(options.name)).rstrip()
    rows = []
    for name in list_presets():
        settings = read_settings(name)
        top_down = settings.for_arrangement("td")
        epochs, lr = (
            f"{a:g}" if a == b else f"{a:g} / {b:g}"
            for a, b in ((settings.epochs, top_down.epochs), (settings.lr, top_down.lr))
        )
        rows.append({"preset": name, "model": settings.model, "data": settings.data, "epochs": epochs, "lr": lr,
                     "weight decay": f"{settings.weight_decay:g}"})  # fmt: skip
    return format_table(rows)


_RUN: dict[str, Callable[[argparse.Namespace], str]] = {
    "search": _search,
    "merge": _merge,
    "report": _report,
    "presets": _presets,
}


def _respond(options: argparse.Namespace, answer: dict[str, Any]) -> str:
    """What the first process prints; the others are silent."""
    if int(os.environ.get("RANK", "0")) > 0:
        raise SystemExit(0)
    if options.json:
        return json.dumps(answer, indent=2)
    lines = []
    for title, rows in answer["tables"].items():
        lines += [title, format_table(rows), ""]
    return "\n".join([*lines, *answer["written"]])
