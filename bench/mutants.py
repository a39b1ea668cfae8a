"""Do the tests notice when the code is wrong? Small faults, one at a time, and the fast tests against each.

    PYTHONPATH=. python bench/mutants.py [--count 40] [--seed 0] [--jobs 1] [--whole]

A fault is one of: a number or a truth value changed (*constant*), a comparison or an arithmetic sign turned
(*operator*), the body of an `if` dropped (*branch*), the first two arguments of a call swapped (*arguments*). The
packages take turns, and within one the place is drawn by the seed, so that fault n is the same wherever it is made.
Texts of errors, docstrings and annotations are left alone.

Each fault is made in a copy of the checkout. The tests that lie where the code lies run first, up to the first
failure; with --whole, the faults that these let pass face all fast tests. A fault ends as "caught" (by which test),
or "survived". Writes bench/results/mutants.csv and .json after every fault, and goes on where it was stopped.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _results
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
#: Where faults are made: packages take turns. Commands that only draw or print are among them.
HOMES = ("bu2td", "converters")
#: Seconds after which tests are taken to hang, which is noticed, too.
LIMIT = 3600
_SIGNS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Fault:
    """A change of one expression or statement.

    Attributes:
        file: relative to the checkout.
        line: from 1.
        kind: constant, operator, branch or arguments.
        before, after: source of what is changed, in one line each.
        text: of the whole file, with the fault.
    """

    file: str
    line: int
    kind: str
    before: str
    after: str
    text: str


def changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The faults of one node: their kind, and the node as it is then."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        value = node.value
        yield "constant", ast.Constant(not value if isinstance(value, bool) else value + 1)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SIGNS:
        turned = copy.copy(node)
        turned.ops = [_SIGNS[type(node.ops[0])]()]  # type: ignore[list-item]
        yield "operator", turned
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _SIGNS:
        other = copy.copy(node)
        other.op = _SIGNS[type(node.op)]()  # type: ignore[assignment]
        yield "operator", other
    if isinstance(node, ast.If):
        never = copy.copy(node)
        never.test = ast.Constant(False)
        yield "branch", never
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        swapped = copy.copy(node)
        swapped.args = [node.args[1], node.args[0], *node.args[2:]]
        if ast.dump(node.args[0]) != ast.dump(node.args[1]):
            yield "arguments", swapped


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a file that a fault may be made in."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
                    continue
                if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                    continue
                if isinstance(child, ast.AST):
                    yield from walk(child)

    yield from walk(tree)


def faults_of(file: Path) -> list[Fault]:
    """All faults that can be made in a file."""
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw, found = text.encode(), []
    for node in places(ast.parse(text)):
        for kind, other in changed(node):
            line, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
            part: ast.AST = node
            if isinstance(node, ast.If) and isinstance(other, ast.If):  # its condition is all that changes
                part, other = node.test, other.test
                line, column = part.lineno, part.col_offset  # type: ignore[attr-defined]
            begin = starts[line - 1] + column
            end = starts[part.end_lineno - 1] + part.end_col_offset  # type: ignore[attr-defined]
            after = ast.unparse(other)
            if not isinstance(other, (ast.Constant, ast.Call)):
                after = f"({after})"
            whole = (raw[:begin] + after.encode() + raw[end:]).decode()
            try:
                ast.parse(whole)
            except SyntaxError:  # within a string that is put together, say
                continue
            before = " ".join(raw[begin:end].decode().split())
            found.append(Fault(str(file.relative_to(ROOT)), line, kind, before, after, whole))
    return found


def drawn(count: int, seed: int) -> list[Fault]:
    """Faults, the packages in turns, each kind as often as the others where a package allows."""
    draws = random.Random(seed)
    packages: dict[str, list[Path]] = {}
    for home in HOMES:
        for file in sorted((ROOT / home).rglob("*.py")):
            inner = file.relative_to(ROOT / home).parts
            packages.setdefault("/".join((home, *inner[:-1][:1])), []).append(file)
    kinds = ("constant", "operator", "branch", "arguments")
    names = draws.sample(sorted(packages), len(packages))
    found: list[Fault] = []
    for turn in range(count):
        package, kind = names[turn % len(names)], kinds[turn % len(kinds)]
        all_ = [fault for file in packages[package] for fault in faults_of(file)]
        some = [fault for fault in all_ if fault.kind == kind and fault not in found]
        found.append(draws.choice(some or all_))
    return found


def tests_of(file: str) -> list[str]:
    """The tests that lie where a file lies."""
    parts = Path(file).parts[1:] if file.startswith("bu2td/") else Path(file).parts
    for depth in range(len(parts) - 1, 0, -1):
        folder = Path("tests", *parts[:depth])
        if (ROOT / folder).is_dir():
            return [str(folder)]
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py"))]


def faced(fault: Fault, tests: list[str], processes: int) -> str:
    """The first test that notices a fault; empty where none does."""
    with tempfile.TemporaryDirectory() as scratch:
        copy_ = Path(scratch) / "bu2td"
        skipped = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".*_cache", "site", "build", "dist")
        shutil.copytree(ROOT, copy_, symlinks=True, ignore=skipped)
        (copy_ / fault.file).write_text(fault.text)
        call = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
        call += ["-n", str(processes)] if processes > 1 else []
        call += [*tests, "--deselect", "tests/test_writings.py", "--deselect", "tests/test_recipes.py"]
        own = {**os.environ, "PYTHONPATH": str(copy_), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(call, cwd=copy_, env=own, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return "it never ended"
    if done.returncode in (0, 5):
        return ""
    noticed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return noticed.group(1) if noticed else f"pytest ended with {done.returncode}"


def main() -> None:
    parser = _results.parser(__doc__, "mutants")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes of pytest")
    parser.add_argument("--whole", action="store_true", help="all fast tests against what survived")
    args = parser.parse_args()
    about = {"seed": args.seed, "count": args.count}
    rows = [] if args.fresh else _results.earlier(args.out, "run with --fresh, or with another --out", **about)
    done = {row["fault"]: row for row in rows}
    for number, fault in enumerate(bar := tqdm(drawn(args.count, args.seed))):
        bar.set_description(fault.file)
        earlier = done.get(number)
        if earlier is not None and (earlier["caught_by"] or not args.whole or earlier["tests"] == "all"):
            continue
        begin = time.perf_counter()
        tests = ["tests"] if args.whole else tests_of(fault.file)
        row = {
            "fault": number,
            "file": fault.file,
            "line": fault.line,
            "kind": fault.kind,
            "before": fault.before,
            "after": fault.after,
            "caught_by": faced(fault, tests, args.jobs),
            "tests": "all" if args.whole else "own",
            "seconds": round(time.perf_counter() - begin),
        }
        done[number] = row
        rows = [done[key] for key in sorted(done)]
        caught = sum(bool(row["caught_by"]) for row in rows)
        _results.write(args.out, rows, **about, caught=caught, faced=len(rows))
    for row in done.values():
        print(
            f"{row['file']}:{row['line']} {row['before']!r} -> {row['after']!r}: {row['caught_by'] or 'SURVIVED'}"
        )


if __name__ == "__main__":
    main()
