"""Type checkers see what users write wrong, also through an editable install."""

import importlib.util
import inspect
import shutil
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import pytest

import bu2td
from bu2td.options import Options

ROOT = Path(__file__).parents[1]

USER = """
import bu2td
from torch import nn

td = bu2td.convert(nn.Sequential(), "td", merge="add")
reveal_type(td.plan.widths)
bu2td.convert(nn.Sequential(), [32, 16], inherit="none")
bu2td.convert(nn.Sequential(), merg="add")
bu2td.convert(nn.Sequential(), "tb")
bu2td.convert(nn.Sequential(), ["32"])
bu2td.convert(nn.Sequential(), stem="corse")
bu2td.convert(nn.Sequential(), upsample="cubic")
bu2td.convert(nn.Sequential(), merge="sum")
bu2td.convert(nn.Sequential(), pyramid="gauss")
bu2td.convert(nn.Sequential(), inherit="all")
bu2td.convrt(nn.Sequential())
"""
RIGHT = 7  # lines without an error


def test_every_word_has_a_type_and_it_is_what_is_checked() -> None:
    """The words that `Options` takes at run time are those of `convert`'s annotations."""
    hints = typing.get_type_hints(inspect.unwrap(bu2td.convert))
    words = {name: _words(hint) for name, hint in hints.items()}
    named = {name: found for name, found in words.items() if found}
    assert set(named) == {"arrangement", "stem", "upsample", "merge", "pyramid", "inherit"}
    for name, found in named.items():
        for word in found:
            assert getattr(Options(**{name: word}), name) == word
        with pytest.raises(bu2td.Bu2tdError, match=f"{name}='{found[0]}x' is unknown.*{found[-1]}"):
            Options(**{name: f"{found[0]}x"})


def _words(hint: object) -> tuple[str, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return tuple(str(word) for word in typing.get_args(hint))
    return tuple(word for part in typing.get_args(hint) for word in _words(part))


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mypy", "setuptools")), reason="no mypy or setuptools"
)
def test_mypy_reads_an_editable_install(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bu2td", "converters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "bu2td_converters").symlink_to("converters")
    build = "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])"
    _run(sys.executable, "-W", "ignore", "-c", build, str(tmp_path), cwd=source)
    _run(sys.executable, "-m", "venv", "--without-pip", str(site), cwd=tmp_path)
    python = site / "bin" / "python"
    packages = Path(_run(str(python), "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    [path] = packages.glob("*.pth")
    assert path.read_text().strip() == str(source)  # a path, not a finder, which no type checker runs

    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--python-executable", str(python)]
    command += ["--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), "user.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    assert any('user.py:6: note: Revealed type is "tuple[int, ...]"' in line for line in said), said
    wrong = [int(line.split(":")[1]) for line in said if line.startswith("user.py:") and " error: " in line]
    assert sorted(set(wrong)) == list(range(RIGHT + 1, USER.count("\n") + 1))
    assert any('Unexpected keyword argument "merg"' in line for line in said)


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
