"""Plots and pages are made of the committed results."""

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytest.importorskip("matplotlib")


def test_plots_are_drawn_from_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import plots

    made = plots.draw(BENCH / "results", tmp_path)
    assert [path.stem for path in made] == ["speed", "roofline", "memory", "conversion", "cost"]
    for path in made:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 10_000
    rows = json.loads((BENCH / "results" / "speed.json").read_text())["rows"]
    axes = plots.speed([r for r in rows if r["kind"] == "eager"]).axes
    for panel in axes:
        task = panel.get_title(loc="left").partition(",")[0]
        drawn = {line.get_label(): sorted(line.get_xdata()) for line in panel.lines}
        for rival in plots.RIVALS:
            key = (task, "eager", rival)
            found = [r["speedup"] for r in rows if (r["task"], r["kind"], r.get("rival")) == key]
            assert len(found) == 8
            assert drawn[rival] == sorted(found)
    (tmp_path / "none").mkdir()
    assert plots.draw(tmp_path / "none", tmp_path) == []
    assert "has no rows for memory" in capsys.readouterr().out
    sys.modules.pop("plots")


def test_the_page_of_the_paper_is_that_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import paper

    monkeypatch.setattr(paper, "PAGE", tmp_path / "paper.md")
    paper.main()
    made = (tmp_path / "paper.md").read_text()
    assert made == (BENCH.parent / "docs" / "paper.md").read_text()
    # a number of the page is one of the report
    report = json.loads((BENCH / "results" / "evaluate" / "full" / "report.json").read_text())
    (found,) = [
        c for c in report["comparisons"]
        if (c["family"], c["measure"], c["level"], c["arrangement"])
        == ("Accuracy", "test accuracy", "these networks", "td")
    ]  # fmt: skip
    cells = [f"{100 * found[key]:.1f} %" for key in ("bottom_up", "top_down")]
    assert f"| LeNetFC on digits | test accuracy | {' | '.join(cells)} |" in made
    sys.modules.pop("paper")
