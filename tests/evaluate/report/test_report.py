"""The report of an evaluation: its numbers, its verdicts, its page, and what it says of what is missing."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import (
    ACCURACY,
    ALL,
    ATTACKS,
    COLUMNS,
    put_accuracy,
    put_branches,
    put_corruptions,
    put_explanations,
    put_logs,
    put_robustness,
    settings,
    start,
    write,
)

from bu2td.evaluate.report.page import Heading, Missing, Table, Text, to_html, to_markdown
from bu2td.evaluate.report.read import read_table
from bu2td.evaluate.report.writing import write_report


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = start(tmp_path_factory.mktemp("out") / "a run's folder")
    put_accuracy(folder, ACCURACY)
    put_robustness(folder)
    put_branches(folder)
    put_corruptions(folder)
    put_explanations(folder)
    put_logs(folder)
    assert write_report(folder) == folder / "report.html"
    return folder


def document(folder: Path) -> dict[str, Any]:
    def strict(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=strict)


def of(folder: Path, **wanted: str) -> dict[str, Any]:
    rows = document(folder)["comparisons"]
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


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


def test_the_difference_of_accuracies_and_its_standard_error(full: Path) -> None:
    found = of(full, experiment="accuracy", arrangement="td")
    bu, td = np.array(ACCURACY["bu"]), np.array(ACCURACY["td"])
    variances = bu.var(ddof=1), td.var(ddof=1)
    assert found["difference"] == pytest.approx(td.mean() - bu.mean())
    assert found["standard_error"] == pytest.approx(math.sqrt(variances[0] / 4 + variances[1] / 4))
    assert found["spread"] == pytest.approx(math.sqrt(sum(variances)))
    assert found["floor"] == pytest.approx(1 / 50)


@pytest.mark.parametrize(
    ("arrangement", "verdict"), [("td", "worse"), ("uni", "no clear difference"), ("rev", "no clear difference")]
)
def test_the_verdicts_on_accuracy(full: Path, arrangement: str, verdict: str) -> None:
    assert of(full, experiment="accuracy", arrangement=arrangement)["verdict"] == verdict


@pytest.mark.parametrize(
    ("attack", "measure", "verdict", "ratio"),
    [
        ("pgd", "median L2", "better", 2.05 / 1.05),
        ("pgd", "area under the curve", "better", 0.405 / 0.205),
        ("blur", "median L2", "worse", 3.05 / 4.1),
        ("blur", "area under the curve", "worse", 0.405 / 0.51),
        ("shift", "median L2", "no clear difference", 2.3 / 2.2),
        ("shift", "area under the curve", "no clear difference", 0.33 / 0.32),
        ("pixel", "median L2", "better", "inf"),
    ],
)
def test_the_verdicts_on_attacks(full: Path, attack: str, measure: str, verdict: str, ratio: Any) -> None:
    found = of(full, subject=attack, measure=measure)
    assert found["verdict"] == verdict
    assert found["ratio"] == (ratio if ratio == "inf" else pytest.approx(ratio))


def test_the_verdicts_on_corruptions_and_explanations(full: Path) -> None:
    noise = of(full, experiment="corruptions", subject="noise")
    by_hand = [[np.mean([0.95 - s * (f + 0.001 * r) for s in range(1, 6)]) for r in (0, 1)] for f in (0.1, 0.05)]
    assert noise["bottom_up"]["values"] == pytest.approx(by_hand[0])
    assert noise["top_down"]["values"] == pytest.approx(by_hand[1])
    assert (noise["verdict"], of(full, subject="contrast")["verdict"]) == ("better", "worse")
    assert of(full, measure="precision", subject="plain")["verdict"] == "better"
    assert of(full, measure="precision", subject="centred")["verdict"] == "worse"
    assert of(full, measure="recall", subject="centred")["verdict"] == "no clear difference"
    assert of(full, measure="deletion", subject="plain")["verdict"] == "better"  # here less is better


def test_the_summary_names_what_is_better_and_worse(full: Path) -> None:
    text = (full / "report.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Robustness | area"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == ["2: pgd, pixel", "1: shift", "1: blur"]
    assert next(line for line in text.splitlines() if line.startswith("| Accuracy | test accuracy |"))
    found = [row for row in document(full)["comparisons"] if row["arrangement"] == "td"]
    counts = [sum(row["verdict"] == v for row in found) for v in ("better", "worse", "no clear difference")]
    assert f"better in {counts[0]} of {len(found)} comparisons, worse in {counts[1]}, no clear " in text
    assert f"difference in {counts[2]}." in text
    assert "The rule: a difference of means over repeats counts only if" in text


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
    files = sorted(path.name for path in (full / "figures").iterdir())
    assert files == ["accuracy.png", "branches.png", "corruptions.png", "curves.png", "images.png",
                     "levels-centred.png", "levels-plain.png", "localisation.png", "training.png"]  # fmt: skip
    assert sorted(shown) == sorted((full / "figures" / name).read_bytes() for name in files)


def test_the_figures_stand_in_the_papers_order(full: Path) -> None:
    text = read(full).text
    places = [text.index(f"the paper's figure {number}") for number in range(4, 10)]
    assert places == sorted(places)
    assert text.index("Summary") < text.index("Networks") < places[0] < text.index("How this was made")


def test_denominators_seeds_versions_and_command_are_stated(full: Path) -> None:
    text = " ".join(read(full).text.split())
    for words in (
        "share of the 50 test images",
        "of 20 test images, mean over n repeats",
        "share of all 20 attacked test images",
        "30 test images per repeat that all compared networks classify correctly",
        "7, 8, 9, 10",  # seeds
        "2.15",
        "bu2td evaluate all -o out",
        "foolbox.PGD",
        '{"steps": 20}',
        "180 train, 20 validation, 50 test images",
    ):
        assert words in text, words


def test_the_markdown_links_to_pictures_that_are_there(full: Path) -> None:
    text = (full / "report.md").read_text()
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(links) == 9
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
    put_accuracy(folder, ACCURACY)
    put_corruptions(folder)
    write_report(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    write_report(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / "corruptions.csv").unlink()
    (folder / "figures" / "mine.png").write_bytes(b"of the user")
    write_report(folder)
    assert sorted(p.name for p in (folder / "figures").iterdir()) == ["accuracy.png", "mine.png"]
    assert not list(folder.glob(".*"))


HOSTILE = '<script>alert("&")</script>\'|`$x_1^$`*[a](http://b)'


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    data = {**settings()["data"], "name": HOSTILE, "classes": [HOSTILE] * 10}
    folder = start(tmp_path / "<b>x & 'y'", model=HOSTILE, data=data, command=HOSTILE, versions={HOSTILE: HOSTILE},
                   settings={HOSTILE: [HOSTILE]}, device="\x1b[31mred\u202e")  # fmt: skip
    put_accuracy(folder, {"bu": (0.9, 0.8), "td": (0.9, 0.8)})
    put_robustness(folder, {HOSTILE: ATTACKS["pgd"]})
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
    blocks = [Heading("a < b"), Text("x"), Missing("gone.", "do `it`"), Table("t", ["a", "b"], [["1|2", "3"]])]
    page = to_html("T", "s", blocks)
    assert "<h2>a &lt; b</h2>" in page
    assert "<code>do `it`</code>" in page
    text = to_markdown("T", "s", blocks)
    assert "| 1\\|2 | 3 |" in text
    assert "> gone. `` do `it` ``" in text


# --- what is not there --------------------------------------------------------------------------------


def test_a_run_with_nothing_in_it_says_how_to_go_on(tmp_path: Path) -> None:
    folder = start(tmp_path / "a run")
    write_report(folder)
    text = read(folder).text
    for stage in ("train", "robustness", "corruptions", "explain"):
        assert f"bu2td evaluate {stage} -o '{folder}' --resume" in text
    assert "Nothing can be compared" in text
    assert list((folder / "figures").iterdir()) == []


PUTS: dict[str, Callable[[Path], None]] = {
    "accuracy": lambda folder: put_accuracy(folder, ACCURACY),
    "one-repeat": lambda folder: put_accuracy(folder, {"bu": (0.9,), "td": (0.8,)}),
    "no-bottom-up": lambda folder: put_accuracy(folder, {"td": (0.8, 0.7), "uni": (0.8, 0.9)}),
    "robustness": put_robustness,
    "branches": put_branches,
    "corruptions": put_corruptions,
    "explanations": put_explanations,
    "logs": put_logs,
}


@pytest.mark.parametrize("name", PUTS)
def test_one_experiment_alone(tmp_path: Path, name: str) -> None:
    PUTS[name](start(tmp_path / "x"))
    write_report(tmp_path / "x")
    page = read(tmp_path / "x")
    assert "not in this folder. This makes it:" in page.text
    assert page.tags.count("img") >= 1
    if name == "one-repeat":
        assert "not decided (behind in one run)" in page.text
    if name == "no-bottom-up":
        assert "there is no bottom-up network" in page.text


@pytest.mark.parametrize("name", [n for n in COLUMNS if n != "log"])
def test_a_table_without_rows_is_as_good_as_none(tmp_path: Path, name: str) -> None:
    folder = start(tmp_path / "x")
    write(folder / f"{name}.csv", [])
    write_report(folder)
    assert not list((folder / "figures").iterdir())
    (folder / f"{name}.csv").write_text("\n")  # what a writer makes of no rows at all
    assert read_table(folder / f"{name}.csv") == []


def test_a_run_that_was_stopped_before_its_data_were_read(tmp_path: Path) -> None:
    folder = start(tmp_path / "x", settings={"data": "digits"})
    record = json.loads((folder / "run.json").read_text())
    del record["data"], record["device"], record["seconds"]
    (folder / "run.json").write_text(json.dumps(record))
    write_report(folder)
    assert "lenet_fc on digits" in read(folder).text
