"""Tables of sets of corruptions and of sequences."""

import math
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from bu2td.evaluate.report.corruption_section import corruption_tables
from bu2td.evaluate.report.page import Table, to_html, to_markdown
from bu2td.evaluate.report.read import Run

ERRORS = [
    {"arrangement": a, "repeat": r, "data": d, "corruptions": 5, "samples": 300, "error": e, "mce": m}
    for a, r, d, e, m in (
        ("bu", 0, "bu2td", 0.2, 1.0), ("bu", 1, "bu2td", 0.4, 1.0), ("td", 0, "bu2td", 0.1, 0.5),
        ("td", 1, "bu2td", 0.3, math.nan), ("td", 0, "CIFAR-10-C", 0.25, math.nan),
    )
]  # fmt: skip
FLIPS = [
    {"arrangement": "td", "repeat": 0, "perturbation": "P/tilt", "samples": 20, "probability": 0.125, "rate": 0.5}
]


@pytest.mark.parametrize("frames", [True, False])
def test_tables(tmp_path: Path, frames: bool) -> None:
    tables = {"corruption_errors": ERRORS, "flips": FLIPS}
    given = {name: pd.DataFrame(rows) for name, rows in tables.items()} if frames else tables
    blocks = corruption_tables(Run(tmp_path, {}, given, None))
    errors, flips = [block for block in blocks if isinstance(block, Table)]
    assert errors.rows == [
        ["bu2td", "bottom-up", "2", "300", "30.0 ± 14.1", "100.0 ± 0.0"],
        ["bu2td", "top-down", "2", "300", "20.0 ± 14.1", "50.0"],
        ["CIFAR-10-C", "top-down", "1", "300", "25.0", "\N{EN DASH}"],
    ]
    assert flips.rows == [["P/tilt", "top-down", "1", "20", "12.5", "50.0"]]
    to_html("title", "", blocks)
    to_markdown("title", "", blocks)


def test_nothing(tmp_path: Path) -> None:
    assert corruption_tables(Run(tmp_path, {}, {}, None)) == []
