"""The report of an evaluation: its numbers, its page, and what it says of what is missing."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import (
    ACCURACY,
    ALL,
    PUTS,
    put_accuracy,
    put_all,
    put_corruptions,
    put_explanations,
    put_predictions,
    put_robustness,
    settings,
    start,
)

from bu2td.errors import MissingPackageError
from bu2td.evaluate import schema
from bu2td.evaluate.report import figures, statistics
from bu2td.evaluate.report.page import Cell, Heading, Missing, Table, Text, to_html, to_markdown
from bu2td.evaluate.report.read import read_run
from bu2td.evaluate.report.sections import sections
from bu2td.evaluate.report.tables import Drawer
from bu2td.evaluate.report.words import title
from bu2td.evaluate.report.writing import write_report
from bu2td.evaluate.robustness.corruptions import CORRUPTIONS
from bu2td.evaluate.robustness.registry import ATTACKS
from bu2td.evaluate.schema import TABLES, columns, write_table


@pytest.fixture(scope="module", autouse=True)
def few_redrawn() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "REDRAWN", 200)
        patch.setattr(figures, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = put_all(start(tmp_path_factory.mktemp("out") / "a run's folder"))
    assert write_report(folder) == folder / "report.html"
    return folder


def document(folder: Path) -> dict[str, Any]:
    def strict(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=strict)


# --- numbers ------------------------------------------------------------------------------------------


def test_the_accuracies_in_report_json(full: Path) -> None:
    rows = {row["arrangement"]: row for row in document(full)["tables"]["accuracy"]}
    assert list(rows) == list(ALL)
    for arrangement, values in ACCURACY.items():
        found = rows[arrangement]["test_accuracy"]
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["std"] == pytest.approx(np.std(values, ddof=1))
        assert (found["n"], found["values"]) == (4, list(values))
    assert rows["uni"]["parameters"]["mean"] == 3000
    assert rows["bu"]["seconds"]["mean"] == pytest.approx(np.mean([1.5, 2.5, 3.5, 4.5]))
    assert rows["bu"]["peak_memory_mib"] == {"mean": None, "std": None, "n": 0, "values": []}  # was not measured


def test_report_json_has_every_verdict_with_its_numbers(full: Path) -> None:
    rows = document(full)["comparisons"]
    own = [r for r in rows if r["arrangement"] == "td" and r["measure"] == "test accuracy"]
    assert {(r["family"], r["level"], r["verdict"]) for r in own} == {
        ("Accuracy", "these networks", "worse"),
        ("Accuracy", "as an architecture", "worse"),
    }
    assert all(r["low"] < r["estimate"] < r["high"] < 0 < r["adjusted_p"] < 0.05 for r in own)


def test_the_first_lines_say_what_is_decided(full: Path) -> None:
    lines = [line for line in (full / "report.md").read_text().splitlines() if line]
    assert lines[2] == "## What is decided"
    families = [line.split(":**")[0].strip("*") for line in lines[4:10]]
    assert families == ["Accuracy", "Attacks", "Corruptions", "Frequency bands", "Localisation", "Faithfulness"]
    assert lines[4].startswith("**Accuracy:** these networks: bottom-up better by 15.50 points (95 % ")
    assert all("; as an architecture: " in line for line in lines[4:10])
    assert "the exact permutation test cannot go below p = 0.33" in "\n".join(lines[:20])  # two runs


# --- the files ----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps what the page shows and where it links to."""

    EMPTY = ("meta", "img", "br", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_well_formed_and_holds_everything(full: Path) -> None:
    page = read(full)
    pictures = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert page.links == pictures  # nothing from outside
    assert "script" not in page.tags
    assert "link" not in page.tags
    style = (full / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|https?:", style)
    shown = [base64.b64decode(p.partition(",")[2]) for p in pictures]
    names = ["accuracy", "branches-td", "corruptions", "curves", "images", "levels-centred", "levels-plain",
             "localisation", "training"]  # fmt: skip
    files = {path.name for path in (full / "figures").iterdir()}
    names += sorted({name.partition(".")[0] for name in files if name.startswith("frequency")})
    assert files == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert sorted(shown) == sorted((full / "figures" / f"{name}.png").read_bytes() for name in names)


def test_the_figures_stand_in_the_papers_order(full: Path) -> None:
    text = read(full).text
    places = [text.index(f"the paper's figure {number}") for number in range(4, 10)]
    assert places == sorted(places)
    assert text.index("What is decided") < text.index("Networks") < places[0] < text.index("How this was made")


def test_denominators_seeds_versions_and_command_are_stated(full: Path) -> None:
    text = " ".join(read(full).text.split())
    for words in (
        "share of the 50 test images",
        "of 20 test images with a perturbation, mean over n = 2 repeats",
        "share of all 30 attacked test images",
        "30 test images per repeat that all compared networks classify correctly",
        "7, 8, 9, 10",  # seeds
        "2.15",
        "bu2td evaluate all -o out",
        "foolbox.PGD",
        "steps = 20",
        "180 train, 20 validation, 50 test images",
    ):
        assert words in text, words


def test_the_markdown_links_to_pictures_that_are_there(full: Path) -> None:
    text = (full / "report.md").read_text()
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == len(list((full / "figures").glob("*.png"))) >= 9
    assert all((full / link).is_file() for link in links)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    rules = [i for i, line in enumerate(tables) if "--" in line and set(line) <= set("|:- ")]
    assert rules
    assert all(widths[i - 1] == widths[i] == widths[i + 1] for i in rules)


def test_parameters_stand_as_in_the_papers_table(full: Path) -> None:
    text = (full / "report.md").read_text()
    assert "| trainable parameters | 1,000 | 2,000 | 3,000 | 4,000 |" in text
    assert re.search(r"\| trainable parameters, relative \| 1.00 . \| 2.00 . \| 3.00 . \| 4.00 . \|", text)


def test_runs_that_are_not_finished_are_named(full: Path, tmp_path: Path) -> None:
    folder = start(tmp_path / "x")
    put_accuracy(folder, {"bu": (0.9, 0.8), "td": (0.9,)})
    write_report(folder)
    text = read(folder).text
    assert "Not finished: bu-2, bu-3, td-1, td-2, td-3, uni-0, uni-1, uni-2 and 5 more" in text
    assert "Not finished" not in read(full).text


def test_a_second_report_is_the_same_and_forgets_old_figures(tmp_path: Path) -> None:
    folder = start(tmp_path / "x")
    put_accuracy(folder)
    put_corruptions(folder)
    write_report(folder)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(folder)
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "corruptions.csv").unlink()
    (folder / "figures" / "mine.png").write_bytes(b"of the user")
    write_report(folder)
    assert sorted(p.name for p in (folder / "figures").iterdir()) == ["accuracy.png", "accuracy.svg", "mine.png"]
    assert not list(folder.glob(".*"))


HOSTILE = '<script>alert("&")</script>\'|`$x_1^$`*[a](http://b)'


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    data = {**settings()["data"], "name": HOSTILE, "classes": [HOSTILE] * 10}
    folder = start(tmp_path / "<b>x & 'y'", model=HOSTILE, data=data, command=HOSTILE, versions={HOSTILE: HOSTILE},
                   settings={HOSTILE: [HOSTILE]}, device="\x1b[31mred\u202e")  # fmt: skip
    put_accuracy(folder, {"bu": (0.9, 0.8), "td": (0.9, 0.8)})
    put_predictions(folder, {"bu": (0.9, 0.8), "td": (0.9, 0.8)})
    put_robustness(folder, {HOSTILE: 2.0})
    put_explanations(folder)
    write_report(folder)
    page = read(folder)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(HOSTILE) >= 5
    assert "\x1b" not in page.text
    assert all(link.startswith("data:") for link in page.links)
    text = (folder / "report.md").read_text()
    assert not re.search(r"(?<!\\)<script", text)
    assert "](http" not in re.sub(r"\\.", "", text)
    assert document(folder)["run"]["model"] == HOSTILE


def test_blocks_as_html_and_markdown() -> None:
    rows: list[list[str | Cell]] = [["1|2", Cell("3", "better")], ["x" * 40, "4"]]
    blocks = [Heading("a < b"), Text("x", lead="L:"), Missing("gone.", "do `it`"), Table("t", ["a", "b"], rows)]
    page = to_html("T", "s", blocks)
    assert "<h2>a &lt; b</h2>" in page
    assert "<p><strong>L:</strong> x</p>" in page
    assert "<code>do `it`</code>" in page
    assert '<td class="word">1|2</td><td class="word better">3</td>' in page
    assert '<td class="word long">xxx' in page
    text = to_markdown("T", "s", blocks)
    assert text == (
        "# T\n\ns\n\n## a \\< b\n\n**L:** x\n\n> gone. `` do `it` ``\n\nt\n\n| a | b |\n| :-- | --: |\n"
        f"| 1\\|2 | 3 |\n| {'x' * 40} | 4 |\n"
    )


def test_captions_stand_outside_of_what_scrolls(full: Path) -> None:
    page = (full / "report.html").read_text()
    boxes = re.findall(r'<div class="wide">(.*?)</div>', page, re.DOTALL)
    assert len(boxes) == page.count("<table>") + page.count("<img")
    assert not any("caption" in box for box in boxes)
    assert page.count("<figcaption>") == len(boxes)
    assert ".wide { overflow-x: auto; }" in page


def test_titles_stand_where_names_were(full: Path) -> None:
    text = read(full).text.partition("How this was made")[0]
    for name in (
        "gaussian-blur",
        "single-pixel",
        "last-convolution",
        "lenet_fc",
        "gaussian-noise",
        "test_accuracy",
    ):
        assert name not in text, name
    assert "LeNetFC on handwritten digits" in text
    assert all(title(name) == attack.title for name, attack in ATTACKS.items())
    assert [title(name) for name in CORRUPTIONS[:2]] == ["Gaussian noise", "Impulse noise"]
    assert title("last-level, plain") == "last level, plain"
    assert title("more-steps:pgd") == "More steps: PGD (L2)"
    assert title("My Net_x") == "My Net_x"


# --- what single tables say ---------------------------------------------------------------------------


def table(text: str, caption: str) -> list[list[str]]:
    """Rows of a Markdown table by the start of its caption."""
    lines = text[text.index(f"\n{caption}") :].splitlines()[3:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[:end]]


def test_the_table_of_attacks(full: Path) -> None:
    head, _, *rows = table((full / "report.md").read_text(), "Mean ± standard deviation over n repeats; distances")
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["attack"] for row in found[:3]] == ["Strongest attack", "Strongest attack", "PGD (L2)"]
    pixel = found[-1]
    assert (pixel["attack"], pixel["network"], pixel["failures"]) == ("Single pixel", "top-down", str(29 * 3))
    assert (pixel["median distance"], pixel["queries per image"]) == ("∞", "120 ± 0")
    assert {row["distances are"] for row in found} == {"at rest", "upper bounds (90% at rest)"}


def test_decision_attacks_are_upper_bounds_unless_they_say_otherwise(tmp_path: Path) -> None:
    put_robustness(start(tmp_path), {"boundary": 2.0, "pgd": 2.0})
    rows = read_run(tmp_path).tables["robustness"].assign(converged=math.nan)
    write_table(schema.Robustness, [schema.Robustness(**row) for row in rows.to_dict("records")], tmp_path)
    write_report(tmp_path)
    head, _, *found = table((tmp_path / "report.md").read_text(), "Mean ± standard deviation over n repeats; dist")
    assert head[-1] == "distances are"
    assert [row[-1] for row in found] == ["upper bounds"] * 2 + ["\N{EN DASH}"] * 2


def test_the_tables_of_heat_maps_count_empty_ones(full: Path) -> None:
    head, _, *rows = table((full / "report.md").read_text(), "Localisation: precision")
    assert len(rows) == 8
    first = dict(zip(head, rows[0], strict=True))
    assert (first["heat map of the"], first["heat map is"]) == ("last convolution", "centred")
    assert (first["empty maps"], first["nothing above the cut"], first["images"]) == ("4", "2", "30")


def test_accuracy_class_by_class(full: Path) -> None:
    head, _, *rows = table((full / "report.md").read_text(), "Accuracy on the test images of each class")
    assert (head[:2], len(rows)) == (["class", "images"], 10)
    said = read_run(full).tables["predictions"]
    own = said[(said["label"] == 1) & (said["arrangement"] == "bu")]
    mean = (own["predicted"] == 1).mean()
    assert (rows[1][:2], rows[1][2].split()[0]) == (["digit 1", "5"], f"{100 * mean:.2f}")


def test_a_search_stands_in_the_report(full: Path) -> None:
    head, _, *rows = table((full / "report.md").read_text(), "Search of hyper-parameters")
    assert [row[2] for row in rows] == ["0.100", "0.300"]
    assert [row[-1] for row in rows] == ["", "best"]
    assert head[:2] == ["network", "varied"]


def test_signs_of_masking_robust_accuracy_and_sets_of_corruptions(tmp_path: Path) -> None:
    run = read_run(start(tmp_path))
    masking = [
        {"arrangement": a, "repeat": 0, "check": check, "images": 20, "violations": v, "largest": 0.02 + v,
         "median_change": 0.01, "holds": int(not v)}
        for a, check, v in (("bu", "more-steps:pgd", 0), ("td", "black-box", 3))
    ]  # fmt: skip
    radii = [{"arrangement": a, "repeat": 0, "attack": "autoattack-l2", "norm": "l2", "radius": 0.5, "samples": 20,
              "accuracy": 0.4} for a in ("bu", "td")]  # fmt: skip
    errors = [{"arrangement": "td", "repeat": r, "data": "cifar10-c", "corruptions": 15, "samples": 99,
               "error": 0.25, "mce": 0.8} for r in (0, 1)]  # fmt: skip
    flips = [{"arrangement": "td", "repeat": 0, "perturbation": "tilt", "samples": 9, "probability": 0.1,
              "rate": 1.25}]  # fmt: skip
    more = {"masking": pd.DataFrame(masking), "robust_accuracy": pd.DataFrame(radii),
            "corruption_errors": pd.DataFrame(errors), "flips": pd.DataFrame(flips)}  # fmt: skip
    run = dataclasses.replace(run, tables={**run.tables, **more})
    text = to_markdown("t", "s", sections(run, [], Drawer(tmp_path)))
    _, _, *rows = table(text, "Whether gradients may be masked")
    assert [row[-1] for row in rows] == ["none", "yes"]
    assert [row[0] for row in rows] == ["More steps: PGD (L2)", "Black box against white box"]
    _, _, row = table(text, "Robust accuracy")
    assert row[-2:] == ["40.00", "40.00"]
    _, _, row = table(text, "Sets of corruptions")
    assert row == ["CIFAR-10-C", "top-down", "2", "15", "99", "25.00 ± 0.00", "80.00 ± 0.00"]
    _, _, row = table(text, "Perturbation sequences")
    assert row == ["Tilt", "top-down", "1", "9", "10.00", "125.00"]


# --- what is not there --------------------------------------------------------------------------------


def test_a_run_with_nothing_in_it_says_how_to_go_on(tmp_path: Path) -> None:
    folder = start(tmp_path / "a run")
    write_report(folder)
    text = read(folder).text
    for stage in ("train", "robustness", "corruptions", "explain"):
        assert f"bu2td evaluate {stage} -o '{folder}' --resume" in text
    assert "Nothing can be compared" in text
    assert list((folder / "figures").iterdir()) == []


@pytest.mark.parametrize("name", PUTS)
def test_one_experiment_alone(tmp_path: Path, name: str) -> None:
    PUTS[name](start(tmp_path / "x"))
    write_report(tmp_path / "x")
    page = read(tmp_path / "x")
    assert "not in this folder. This makes it:" in page.text
    if name != "bands":  # the section on frequencies draws them
        assert ("img" in page.tags) == (name not in ("predictions", "search", "boxes"))


def test_one_repeat_and_no_bottom_up_network(tmp_path: Path) -> None:
    put_accuracy(start(tmp_path / "x"), {"bu": (0.9,), "td": (0.8,)})
    write_report(tmp_path / "x")
    assert "not decided with 1 run" in read(tmp_path / "x").text
    put_accuracy(start(tmp_path / "y"), {"td": (0.8, 0.7), "uni": (0.8, 0.9)})
    write_report(tmp_path / "y")
    assert "there is no bottom-up network" in read(tmp_path / "y").text


def test_data_without_objects(tmp_path: Path) -> None:
    write_report(start(tmp_path / "x", objects={"kind": "none", "why": "the data have no boxes"}))
    text = read(tmp_path / "x").text
    assert "Nothing is localised: the data have no boxes." in text
    assert "Precision and recall (localisation.csv)" not in text


def test_tables_without_rows_are_as_good_as_none(tmp_path: Path) -> None:
    folder = start(tmp_path / "x")
    for file, kind in TABLES.items():
        if file != schema.Epoch.file:
            (folder / file).write_text(",".join(columns(kind)) + "\n")
    write_report(folder)
    assert not list((folder / "figures").iterdir())
    assert "Nothing can be compared" in read(folder).text


def test_a_run_that_was_stopped_before_its_data_were_read(tmp_path: Path) -> None:
    folder = start(tmp_path / "x", settings={"data": "digits"})
    record = json.loads((folder / "run.json").read_text())
    del record["data"], record["device"], record["seconds"]
    (folder / "run.json").write_text(json.dumps(record))
    write_report(folder)
    assert "LeNetFC on handwritten digits" in read(folder).text


def test_the_suite_loads_without_what_its_report_needs(tmp_path: Path) -> None:
    code = "import bu2td.evaluate, sys; print(sorted({'pandas', 'jinja2', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", ["pandas", "jinja2", "matplotlib"])
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package} is not installed. Run: pip install 'bu2td\[eval"):
        write_report(start(tmp_path))
