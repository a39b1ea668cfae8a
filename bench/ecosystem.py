"""Runs the tests of all clients that are installed, and writes which forms of a network each one works with.

    python bench/ecosystem.py                     all, into bench/results/ecosystem.* and docs/ecosystem.md
    python bench/ecosystem.py --match lightning   some of them; the other rows stay

A client is a file of tests/ecosystem/; its first line says what it is, what to install, and what is compared. A
form works if every test of the client passes with it; clients that train are not tried with one that does not.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from _results import FOLDER, Row, earlier, versions, write

ROOT = Path(__file__).parents[1]
TESTS, PAGE = ROOT / "tests" / "ecosystem", ROOT / "docs" / "ecosystem.md"
FORMS = ("plain", "inference", "training")
ABOUT = re.compile(r'"""(?P<client>[^(]+) \((?P<packages>[^)]+)\): (?P<compared>.+?)\s*"""', re.S)
BEGIN, END = "<!-- table of bench/ecosystem.py -->\n", "<!-- end of table -->\n"


def about(file: Path) -> Row:
    """What the first line of a client's tests says."""
    found = ABOUT.match(file.read_text())
    assert found is not None, f"{file}: the first line is no 'Client (packages): what is compared.'"
    packages = found["packages"].split(", ")
    installed = ", ".join(f"{name} {version}" for name, version in versions(*packages).items())
    return {"client": found["client"], "versions": installed, "compared": found["compared"]}


def outcome(case: ElementTree.Element) -> str:
    """What became of a test."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "fails"
    if case.find("properties/property[@name='refused']") is not None:
        return "refused"
    return "not tried" if case.find("skipped") is not None else "works"


def forms(cases: list[ElementTree.Element]) -> Row:
    """By form the worst outcome of a client's tests, and what was skipped."""
    found: dict[str, list[str]] = {form: [] for form in FORMS}
    for case in cases:
        words = re.split(r"[\[\]-]", case.attrib["name"])
        for form in [form for form in FORMS if form in words] or ["plain"]:
            found[form].append(outcome(case))
    row = {}
    for form, outcomes in found.items():
        tried = [one for one in outcomes if one != "not tried"]
        worst = next((bad for bad in ("fails", "refused") if bad in tried), "works")
        row[form] = worst if tried else "not tried" if outcomes else "-"
    skipped = {str(s.attrib["message"]) for case in cases if (s := case.find("skipped")) is not None}
    return {**row, "skipped": "; ".join(sorted(skipped))}


def run(files: list[Path]) -> list[Row]:
    """The rows of some clients."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        words = ["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *words, *map(str, files)], cwd=ROOT, check=False)
        cases: dict[str, list[ElementTree.Element]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            if "classname" not in case.attrib:  # what an interrupt left
                continue
            cases.setdefault(f"{case.attrib['classname'].rpartition('.')[2]}.py", []).append(case)
    return [{**about(file), **forms(cases.get(file.name, []))} for file in files]


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        '| client | plain | optimize(td) | optimize(td, "training") | what is compared |',
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["client"], *(row[form] for form in FORMS), row["compared"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only clients whose file's name contains this")
    parser.add_argument("--out", type=Path, default=FOLDER / "ecosystem")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table is written again")
    args = parser.parse_args()
    files = sorted(TESTS.glob("test_*.py"))
    known = {about(file)["client"] for file in files}
    made = {row["client"]: row for row in run([file for file in files if args.match in file.name])}
    before = earlier(args.out, "remove it") if args.match else []
    kept = {row["client"]: row for row in before if row["client"] in known} | made
    rows = sorted(kept.values(), key=lambda row: str(row["client"]).lower())
    write(args.out, rows, cuda=torch.cuda.is_available())
    head, _, rest = args.page.read_text().partition(BEGIN)
    args.page.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
