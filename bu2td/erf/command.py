"""``python -m bu2td.erf MODEL``, also ``bu2td erf MODEL``: receptive fields, both networks side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

import bu2td
from bu2td.arguments import (
    ABOUT,
    Parser,
    add_input_size,
    add_json,
    add_list,
    add_model,
    arrangement_word,
    check_folder,
    example_inputs,
    parse_arrangement,
    respond,
)
from bu2td.erf.gradient import Gradients, gradient
from bu2td.erf.panel import Panel
from bu2td.erf.plot import check_plot, plot
from bu2td.erf.subject import Subject, subject
from bu2td.erf.table import extent
from bu2td.erf.theory import Fields, theory
from bu2td.errors import (
    ModelOutputError,
    NoReductionError,
    OptionError,
    TopologyError,
    UnsupportedOperationError,
    nearest,
)
from bu2td.files import write_csv
from bu2td.ir import format_table
from bu2td.models import create_model

MODES = ("theory", "gradient", "both")
SIDES = ("bottom-up", "top-down")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see `bu2td.arguments.respond`."""
    parser = Parser(prog="python -m bu2td.erf", **{k: v for k, v in ABOUT["erf"].items() if k != "help"})
    add_arguments(parser)
    return respond(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model(parser, run)
    add = parser.add_argument
    add_list(
        parser,
        "--arrangement",
        made=parse_arrangement,
        default="td",
        metavar="td|uni|rev|W,W,..",
        help="of the top-down network; default: %(default)s",
    )
    add("--no-topdown", dest="topdown", action="store_false", help="the bottom-up network alone")
    add_list(
        parser,
        "--layers",
        made=",".join,
        default="levels",
        metavar="levels|all|NAME,NAME",
        help="default: %(default)s",
    )
    add("--mode", choices=MODES, default="theory", metavar="|".join(MODES), help="default: %(default)s")
    add_input_size(parser)
    add("--device", metavar="D", help="where gradients are computed; default: cpu")
    add("--count", type=int, default=16, metavar="N", help="images that gradients average; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of weights and images; default: %(default)s")
    add_json(parser)
    add("--csv", metavar="FILE", help="also write the rows of both networks as CSV")
    add("--plot", metavar="FILE", help="also draw them: .png, .svg or .pdf")


@dataclass(frozen=True)
class _Side:
    """One of the two networks, what is asked of it, and what was found."""

    word: str
    subject: Subject
    layers: Any
    fields: Fields | None = None
    gradients: Gradients | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer: theory, and in front of the names of its columns ``gradient_``."""
        theory = {row["name"]: row for row in self.fields.rows} if self.fields else {}
        measured = {row["name"]: row for row in self.gradients.rows} if self.gradients else {}
        rows = []
        for name in theory or measured:
            row: dict[str, Any] = {"network": self.word, "name": name, **theory.get(name, {})}
            for key, value in measured.get(name, {}).items():
                if key not in ("name", "reduction") or not theory:
                    row[key if key in ("name", "reduction") else f"gradient_{key}"] = value
            rows.append(row)
        return rows


def run(options: argparse.Namespace) -> str:
    """Answer the command.

    Raises:
        Bu2tdError: see `bu2td.errors`.
    """
    _check(options)
    measured = options.mode != "theory"
    model = _model(options, measured)
    images = example_inputs(options, model)
    subjects = _subjects(options, model, images)
    chosen = _layers(options.layers, subjects)
    sides = [
        _find(options, _Side(word, looked_at, layers))
        for word, looked_at, layers in zip(SIDES, subjects, chosen, strict=False)
    ]
    if options.csv:
        write_csv([row for side in sides for row in side.rows()], options.csv)
    if options.plot:
        _draw(options, sides)
    answer = _answer(options, sides)
    return json.dumps(answer, indent=2) if options.json else _text(options, sides)


def _check(options: argparse.Namespace) -> None:
    """Fail before a long computation rather than after it."""
    if options.csv:
        check_folder(options.csv)
    if options.plot:
        check_plot(options.plot)
    if options.count < 1:
        raise OptionError(f"--count {options.count} must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise OptionError(f"--seed {options.seed} must be a whole number from 0 to 2**63 - 1")
    if options.device is not None and options.mode == "theory":
        raise OptionError("--device says where gradients are computed; theory needs none: add --mode gradient")
    if options.layers == "all" and options.mode != "theory":
        raise OptionError("--layers all is for --mode theory; gradients are measured for levels or named layers")


def _model(options: argparse.Namespace, measured: bool) -> nn.Module:
    if not measured:
        return create_model(options.model, device="meta")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return create_model(options.model, device="cpu")


def _subjects(options: argparse.Namespace, model: nn.Module, images: Tensor | None) -> list[Subject]:
    """The bottom-up network, and its top-down network if it is asked for."""
    if not options.topdown:
        return [subject(model, images)]
    try:
        analysis = bu2td.analyze(model, example_inputs=images)
        network = bu2td.convert(
            analysis,
            options.arrangement,
            device="cpu" if options.mode != "theory" else "meta",
            seed=options.seed,
            inherit="none",
            max_macs_ratio=None,
        )
    except (NoReductionError, TopologyError, ModelOutputError, UnsupportedOperationError) as error:
        subject(model, images)  # else the cause lies in the bottom-up network
        hint = "--no-topdown shows the receptive fields of the bottom-up network alone"
        raise type(error)(f"{error}; {hint}") from error
    return [subject(analysis), subject(network)]


def _layers(text: str, subjects: list[Subject]) -> list[Any]:
    """What each network is asked for; a name need not be in both."""
    if text in ("levels", "all"):
        return [text] * len(subjects)
    names = [name for name in text.split(",") if name]
    known = [looked_at.names() for looked_at in subjects]
    for name in names or [""]:
        if not any(name in own for own in known):
            every = {name: None for own in known for name in own}
            raise OptionError(
                f"--layers: there is no layer {name!r}.{nearest(name, every)} The levels are "
                f"{', '.join(subjects[0].levels)}; --layers all lists everything"
            )
    return [[name for name in names if name in own] for own in known]


def _find(options: argparse.Namespace, side: _Side) -> _Side:
    """Theory and gradients of one network."""
    fields, gradients = None, None
    if options.mode != "gradient" and side.layers:
        fields = theory(side.subject, layers=side.layers)
    if options.mode != "theory" and side.layers:
        gradients = gradient(
            side.subject, layers=side.layers, count=options.count, device=options.device, seed=options.seed
        )
    return replace(side, fields=fields, gradients=gradients)


def _draw(options: argparse.Namespace, sides: list[_Side]) -> None:
    panels = []
    for side in sides:
        maps = side.gradients.maps if side.gradients else {}
        panels.append(Panel.of(side.word, side.subject, theory(side.subject, layers="all").rows, maps))
    plot(panels, options.plot)


# --- the answer ---------------------------------------------------------------------------------------


def _answer(options: argparse.Namespace, sides: list[_Side]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "model": options.model,
        "class": type(sides[0].subject.source).__name__,
        "image_shape": list(sides[0].subject.image_shape),
        "arrangement": options.arrangement if options.topdown else None,
        "mode": options.mode,
    }
    for side in sides:
        key = side.word.replace("-", "_")
        answer[key] = {
            "theory": side.fields.rows if side.fields else [],
            "gradient": side.gradients.rows if side.gradients else [],
        }
    return answer


_THEORY = (
    "theory (pixels): size of the field, distance between neighbours (jump), sizes that meet at the last merge"
)
_GRADIENT = (
    "gradients of the centre unit (pixels), {count} images, weights as built (seed {seed}): sides that hold 68 % "
    "and 95 %\nof the mass, sigma of the Gaussian, share of the mass inside the theoretical field"
)


def _text(options: argparse.Namespace, sides: list[_Side]) -> str:
    size = "x".join(map(str, sides[0].subject.image_shape[1:]))
    what = f"{options.model} ({type(sides[0].subject.source).__name__})"
    turned = f" and its top-down network ({arrangement_word(options.arrangement)})" if options.topdown else ""
    lines = [f"receptive fields of {what}{turned}, image {size}"]
    together = options.layers == "levels"
    levels = sorted({name for side in sides for name in side.subject.levels}, key=lambda n: -Fraction(n[1:]))
    for kind, explained, cells in (("fields", _THEORY, _theory_cells), ("gradients", _GRADIENT, _gradient_cells)):
        tables = [(s.word, getattr(s, kind).rows if getattr(s, kind) else [], cells) for s in sides]
        if not any(rows for _, rows, _ in tables):
            continue
        lines += ["", explained.format(count=options.count, seed=options.seed)]
        if together:
            lines.append(format_table(_side_by_side(tables, levels)))
        else:
            for word, rows, _ in tables:
                lines.append(f"{word}:")
                lines.append(format_table([{"layer": row["name"], **cells(row)} for row in rows]))
    lines += _notes(sides)
    return "\n".join(lines)


def _side_by_side(
    tables: list[tuple[str, list[dict[str, Any]], Any]], levels: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per level; the columns of both networks beside one another."""
    result = []
    for name in levels:
        line: dict[str, Any] = {"level": name}
        for word, rows, cells in tables:
            own = next((row for row in rows if row["name"] == name), None)
            blank = dict.fromkeys(cells(rows[0]), "") if rows else {}
            for key, value in (cells(own) if own else blank).items():
                # Columns are told apart by their titles: those of the second network end in a space.
                line[word if key == "field" else key + " " * (word == "top-down")] = value
        result.append(line)
    return result


def _theory_cells(row: dict[str, Any]) -> dict[str, Any]:
    if row["size"] is None:
        cause = "unknown" if row["unknown"] else "whole image" if row["gated"] else "none"
        return {"field": cause, "jump": "", "meet": ""}
    meet = ", ".join(extent(size) for size in row["merged"])
    return {
        "field": extent(row["size"]) + "+" * row["gated"],
        "jump": extent(row["jump"]),
        "meet": f"{{{meet}}}" if meet else "",
    }


def _gradient_cells(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "68 %": round(row["size_68"], 1),
        "95 %": round(row["size_95"], 1),
        "sigma": round(row["sigma"], 1),
        "inside": "" if row["share"] is None else f"{row['share']:.1%}",
    }


def _notes(sides: list[_Side]) -> list[str]:
    notes = []
    for side in sides:
        rows = side.fields.rows if side.fields else []
        if any(row["gated"] and row["size"] for row in rows):
            notes.append(
                f"note: {side.word}: + sees the whole image besides, through a global gate; the size leaves it out"
            )
        causes = {row["unknown"]: None for row in rows if row["unknown"]}
        notes += [f"note: {side.word}: unknown behind {cause}" for cause in causes]
    return notes
