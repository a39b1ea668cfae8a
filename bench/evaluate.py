"""LeNetFC and NIN-light on digits, evaluated in full; what came of it goes to bench/results/evaluate.

    python bench/evaluate.py                 # both presets, in out/; goes on where it stopped (hours on two cores)
    python bench/evaluate.py --keep-only     # keep the results of runs that are there already

The same as ``bu2td evaluate all --preset full -o out/full`` (and full-nin_light), and copying what is small:
tables, report and figures, not checkpoints and attacked images.
"""

import argparse
import shutil
from pathlib import Path

from bu2td.evaluate import evaluate, read_settings, write_report

RESULTS = Path(__file__).parent / "results" / "evaluate"
PRESETS = ("full", "full-nin_light")
KEPT = ("*.csv", "run.json", "report.md", "report.json", "figures/*.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the runs are; default: %(default)s")
    parser.add_argument("--keep-only", action="store_true", help="run nothing")
    args = parser.parse_args()
    for preset in PRESETS:
        folder = args.out / preset
        if args.keep_only:
            write_report(folder)
        else:
            evaluate("all", read_settings(preset), folder, resume=folder.is_dir(), preset=preset)
        keep(folder, RESULTS / preset)


def keep(folder: Path, target: Path) -> None:
    """Copy tables, report and figures in place of those of an earlier run."""
    if target.is_dir():
        shutil.rmtree(target)
    for pattern in KEPT:
        for file in folder.glob(pattern):
            place = target / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


if __name__ == "__main__":
    main()
