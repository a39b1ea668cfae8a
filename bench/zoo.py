"""Convert every CNN classifier of torchvision and timm in td, uni and rev, and leave a table.

    python bench/zoo.py                     # all of them; goes on where it was stopped
    python bench/zoo.py --family resnet --fresh

This is ``bu2td zoo`` with all its options (see ``--help``), a process per core, and the table in
bench/results/zoo.csv, its summary in zoo.json.
"""

import os
import sys

import _results

from bu2td.cli import main

if __name__ == "__main__":
    own = sys.argv[1:]
    existing = [] if "--fresh" in own else ["--resume"]
    _results.FOLDER.mkdir(exist_ok=True)
    defaults = ["--jobs", str(os.cpu_count() or 1), "-o", str(_results.FOLDER / "zoo.csv")]
    raise SystemExit(main(["zoo", *defaults, *existing, *own]))
