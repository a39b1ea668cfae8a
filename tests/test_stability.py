"""What is public has a tier, a place in the reference and one version; the site has every page."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bu2td
from bu2td.cli.program import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TIERS = ("stable", "provisional", "for converters")


def tiers() -> dict[str, list[str]]:
    """The names of each row of the table."""
    text = (DOCS / "stability.md").read_text()
    rows = re.findall(r"^\| ([\w ]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return {tier: re.findall(r"`(\w+)`", names) for tier, names in rows if tier != "tier"}


def test_every_public_name_has_one_tier() -> None:
    found = tiers()
    assert tuple(found) == TIERS
    assert sorted(name for names in found.values() for name in names) == sorted(bu2td.__all__)


def test_every_public_name_is_in_the_reference_once() -> None:
    pages = "".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    found = re.findall(r"^::: bu2td\.(\w+)$", pages, re.MULTILINE)
    assert len(found) == len(set(found))
    covered = {*found, "Bu2tdError", "PretrainedWarning"}  # in the page of bu2td.errors
    assert covered == {*bu2td.__all__, "errors"}
    for name in covered - {"erf", "evaluate", "errors"}:
        assert (getattr(bu2td, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("package", ["erf", "evaluate"])
def test_functions_named_as_their_modules_are_in_the_reference(package: str) -> None:
    """A reference of the package shows the module of that name instead."""
    public = importlib.import_module(f"bu2td.{package}")
    page = (DOCS / "reference" / f"{package}.md").read_text()
    alike = [name for name in public.__all__ if (ROOT / "bu2td" / package / f"{name}.py").exists()]
    assert re.findall(rf"^::: bu2td\.{package}\.(\w+)\.\1$", page, re.MULTILINE) == sorted(alike, reverse=True)


def test_every_command_is_told() -> None:
    text = (DOCS / "command-line.md").read_text()
    assert set(re.findall(r"^bu2td (\w+)", text, re.MULTILINE)) == set(COMMANDS)


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"^ +- [^:\n]+: ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    generated = {"index.md", "contributing.md", "changelog.md"}
    generated |= {f"notebooks/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert named == pages | generated


def test_one_version() -> None:
    assert 'version = { attr = "bu2td.version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == bu2td.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", bu2td.__version__)
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()  # one place has it


def test_the_citation_is_the_papers() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = cited["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lelekas", "Tomen", "Pintea", "van Gemert"]
    assert paper["title"] == "Top-Down Networks: A coarse-to-fine reimagination of CNNs"
    assert paper["identifiers"][0]["value"] == "arXiv:2004.07629"
    for part, needed in ((cited, "cff-version message title authors"), (paper, "type title authors year")):
        assert set(needed.split()) <= set(part)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="no mkdocs")
def test_the_site_notices_a_broken_link(tmp_path: Path) -> None:
    """As `make site` builds it, but for a copy in which a page links to nothing."""
    import shutil

    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "examples", "bench", "bu2td", "converters", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    page = tmp_path / "docs" / "limits.md"
    broken = ["[x](nowhere.md)", "[x](../bench/nowhere.csv)", "[x](concepts.md#no-such-place)"]
    page.write_text("\n\n".join([page.read_text(), *broken]))
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", "site"]  # what --quiet hides is no warning
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    for link in ("'nowhere.md'", "'../bench/nowhere.csv'", "'concepts.md#no-such-place'"):
        assert f"contains a link {link}" in done.stderr
    assert "Aborted with 3 warnings" in done.stderr + done.stdout
