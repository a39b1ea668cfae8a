"""Convert every CNN classifier of torchvision and timm in td, uni and rev, and leave a table.

    python bench/zoo.py                      # all of them; goes on where it was stopped
    python bench/zoo.py --family resnet --fresh
    python bench/zoo.py --library pytorchcv  # the smallest model of each of its families and variants
    python bench/zoo.py --library pytorchcv --every

This is ``bu2td zoo`` with all its options (see ``--help``), a process per core, and the table in
bench/results/zoo.csv, its summary in zoo.json; those of other libraries in zoo_LIBRARY.csv and .json.
"""

import argparse
import os
import sys

import _results

from bu2td.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--library", nargs="+", action="extend", default=[])
    parser.add_argument("--every", action="store_true")
    choice, own = parser.parse_known_args(sys.argv[1:])
    name = "_".join(["zoo", *choice.library])
    existing = [] if "--fresh" in own else ["--resume"]
    smallest = ["--smallest"] if choice.library and not choice.every else []
    libraries = ["--library", *choice.library] if choice.library else []
    _results.FOLDER.mkdir(exist_ok=True)
    defaults = ["--jobs", str(os.cpu_count() or 1), "-o", str(_results.FOLDER / f"{name}.csv")]
    raise SystemExit(main(["zoo", *libraries, *smallest, *defaults, *existing, *own]))
