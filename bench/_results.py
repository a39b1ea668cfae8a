"""Writing results: a CSV and a JSON file with the machine's versions, each whole or not at all."""

import csv
import io
import json
import platform
from pathlib import Path
from typing import Any

import torch

from bu2td.files import replacing

FOLDER = Path(__file__).parent / "results"


def write(stem: Path, rows: list[dict[str, Any]], **about: Any) -> None:
    """Write ``stem.csv`` and ``stem.json``; the columns are those of all rows in order of appearance."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    about |= {"torch": str(torch.__version__), "python": platform.python_version(), "machine": platform.machine()}
    document = json.dumps({"about": about, "rows": rows}, indent=1) + "\n"
    for suffix, content in ((".csv", text.getvalue()), (".json", document)):
        with replacing(stem.with_suffix(suffix)) as temporary:
            temporary.write_text(content)
