"""Build the source distribution and the wheel, and see that the wheel alone is enough.

Warnings of the build are errors. The wheel has to hold the files of bu2td/ and converters/, and nothing else. It is
installed into an environment of its own, which sees the packages of this one (PyTorch among them), but not the
checkout; there `bu2td doctor` and a part of the tests run.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What goes into a source distribution, beside the packages.
BESIDE = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
PACKAGES = {"bu2td": "bu2td", "converters": "bu2td_converters"}
#: Tests of what a wheel may lack: entry points, commands, presets, templates, rates.
TESTS = ("cli/test_doctor.py", "ops", "evaluate/test_presets.py")


def main() -> None:
    """Build, look inside, install, test."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        wheel = build(scratch, variables)
        python = install(wheel, scratch, variables)
        place = scratch / "elsewhere"
        for name in ("tests", "bench"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", place)
        version = run(python.parent / "bu2td", "--version", cwd=place, env=variables).split()[-1]
        if wheel.name.split("-")[1] != version:
            sys.exit(f"bu2td --version says {version}, the wheel is {wheel.name}")
        said = run(python, "-m", "bu2td", "doctor", "--json", cwd=place, env=variables)
        home = json.loads(said)["folder"]
        if not home.startswith(str(scratch)):
            sys.exit(f"the tests would run on {home}, not on the wheel")
        tests = [f"tests/{name}" for name in TESTS]
        words = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
        run(python, "-m", "pytest", *words, *tests, cwd=place, env=variables | {"OMP_NUM_THREADS": "1"}, shown=True)
    print(f"{wheel.name}: built without a warning, complete, and works alone")


def run(program: str | Path, *words: str, cwd: Path, env: dict[str, str], shown: bool = False) -> str:
    """Run a program; its output, which is shown where it fails."""
    done = subprocess.run(
        [program, *words], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {program} {' '.join(words)}")
    if shown:
        print(done.stdout.rstrip())
    return done.stdout


def build(scratch: Path, variables: dict[str, str]) -> Path:
    """The wheel, of a copy of what is packed, so that nothing left from an earlier build is in it."""
    source = scratch / "source"
    source.mkdir()
    for name in BESIDE:
        shutil.copy(ROOT / name, source)
    for name in ("bu2td", "converters", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (source / "bu2td_converters").symlink_to("converters")
    quiet = variables | {"PIP_QUIET": "2"}  # what pip says of its indices is none of the build's warnings
    said = run(sys.executable, "-m", "build", "-o", str(scratch / "dist"), cwd=source, env=quiet)
    warnings = [line for line in said.splitlines() if "warning" in line.lower() or "deprecated" in line.lower()]
    if warnings:
        sys.exit("the build warns:\n" + "\n".join(warnings))
    [wheel], [packed] = (scratch / "dist").glob("*.whl"), (scratch / "dist").glob("*.tar.gz")
    expected = {
        f"{PACKAGES[name]}/{file.relative_to(source / name)}"
        for name in PACKAGES
        for file in (source / name).rglob("*")
        if file.is_file()
    }
    with zipfile.ZipFile(wheel) as opened:
        compare("wheel", expected, {n for n in opened.namelist() if ".dist-info/" not in n})
    with tarfile.open(packed) as opened:
        names = {n.name.partition("/")[2] for n in opened.getmembers() if n.isfile()}
    made = {n for n in names if n in ("PKG-INFO", "setup.cfg") or n.startswith("bu2td.egg-info/")}
    compare("source distribution", expected | set(BESIDE), names - made)
    return wheel


def compare(what: str, expected: set[str], found: set[str]) -> None:
    """Fail where a file is missing, or too much."""
    if expected != found:
        sys.exit(f"the {what} lacks {sorted(expected - found)} and holds {sorted(found - expected)} too much")


def install(wheel: Path, scratch: Path, variables: dict[str, str]) -> Path:
    """The Python of a new environment that holds the wheel."""
    venv = scratch / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=scratch, env=variables)
    python = venv / "bin" / "python"
    words = ("--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel))
    run(sys.executable, "-m", "pip", *words, cwd=scratch, env=variables)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", code, cwd=scratch, env=variables).strip())
    outside = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "outside.pth").write_text("\n".join(outside) + "\n")  # paths, whose own .pth files do not count
    return python


if __name__ == "__main__":
    main()
