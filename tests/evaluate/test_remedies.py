"""Whatever a message of the suite tells to do is done here, and helps."""

import ast
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import rows, words

for package in ("foolbox", "lightning_fabric", "yaml", "matplotlib", "torchvision"):
    pytest.importorskip(package)

import bu2td.evaluate
from bu2td.evaluate.command import add_arguments, main

_COMMAND = re.compile(r"bu2td evaluate ((?:[\w/.,=-]+ ?)+)")
#: Words of a sentence that follow a command without a mark between them.
_PROSE = re.compile(r" (?:trains|makes|writes|does|makes?|to|and|with default)\b.*")


def _commands(message: str) -> list[list[str]]:
    """The command lines that a message prints."""
    return [shlex.split(_PROSE.sub("", found).strip(" .,")) for found in _COMMAND.findall(message)]


def _break_training(folder: Path) -> None:
    (folder / "runs" / "td-1" / "result.json").unlink()


def _damage_result(folder: Path) -> None:
    (folder / "runs" / "td-1" / "result.json").write_text("{")


def _damage_part(folder: Path) -> None:
    path = next((folder / "parts" / "robustness").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:40])


def _damage_table(folder: Path) -> None:
    path = folder / "corruptions.csv"
    path.write_bytes(path.read_bytes()[:-20])


def _nothing(folder: Path) -> None:
    """The run is whole."""


#: (what happens to a finished run, a stage, its arguments)
CASES: list[tuple[Callable[[Path], None], list[str]]] = [
    (_break_training, ["corruptions"]),
    (_break_training, ["robustness"]),
    (_break_training, ["explain"]),
    (_damage_result, ["train", "--resume"]),
    (_damage_result, ["all", "--resume"]),
    (_damage_part, ["robustness"]),
    (_damage_table, ["report"]),
    (_nothing, ["robustness", "--attack-arrangements", "rev"]),
    (_nothing, ["train", "--epochs", "2", "--repeats", "2", "--arrangement", "bu"]),
    (_nothing, ["train", "--resume", "--lr", "0.2"]),
    (_nothing, ["robustness", "--attack-budget", "full", "--attack", "fgsm", "--attack-repeats", "2"]),
]


def _alternatives(message: str, line: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """What a message offers: in words, and what does it; that returns the line to try again."""
    there = ["-o", str(folder)]
    elsewhere = [*line[:1], "-o", str(folder.parent / "another"), *line[1:]]
    for command in _commands(message):
        yield " ".join(command), lambda command=command: _done(command) or [*line, *there]
    for file in re.findall(r"(/\S+) is damaged \(.*delete it", message):
        yield f"delete {file}", lambda file=file: Path(file).unlink() or [*line, *there]
    if "Remove the file" in message:
        file = message.split(": ", 2)[-1].split(",")[0].split(" ")[0]

        def remove() -> list[str]:
            Path(file).unlink()
            _done(["all", *there, "--resume"])
            return [*line, *there]

        yield f"remove {file}", remove
    for flag in ("--resume", "--overwrite"):
        if flag in message and "evaluate" not in message and "Remove" not in message:
            yield flag, lambda flag=flag: [*line, *there, flag]
    if "Leave them out" in message:
        yield "leave them out", lambda: [*[w for w in line if w not in ("--lr", "0.2")], *there]
    if "-o" in message and line[0] in ("train", "all") and "evaluate" not in message:
        base = [w for w in line if w != "--resume"]
        yield "-o", lambda: [*base[:1], *elsewhere[1:3], *words(folder.parent, *base[1:]), "--epochs", "1"]


def _done(command: list[str]) -> None:
    assert main(command) == 0, command


@pytest.mark.parametrize(
    ("broken", "line"), [pytest.param(*c, id=f"{c[0].__name__}-{'-'.join(c[1])}") for c in CASES]
)
def test_what_a_message_tells_to_do_helps(
    copied: Path, capsys: pytest.CaptureFixture[str], broken: Callable[[Path], None], line: list[str]
) -> None:
    kept = shutil.copytree(copied, copied.with_name("kept"))
    broken(copied)
    if main([*line, "-o", str(copied)]) == 0:
        return  # it heals itself
    message = capsys.readouterr().err
    offered = list(_alternatives(message, line, copied))
    assert offered, message
    for number, (what, follow) in enumerate(offered):
        if number:
            for place in copied.parent.glob("out*"):
                shutil.rmtree(place)
            shutil.copytree(kept, copied)
            broken(copied)
        again = follow()
        assert main(again) == 0, (message, what, again, capsys.readouterr().err)


def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("robustness", "corruptions", "explain"):
        folder = tmp_path / stage
        assert main([stage, "-o", str(folder)]) == 2
        (command,) = _commands(capsys.readouterr().err)
        assert command == ["train", "-o", str(folder)]
    assert main([*command, *words(tmp_path), "--epochs", "1", "--repeats", "1"]) == 0
    assert main(["explain", "-o", str(folder), "--explain-samples", "4"]) == 0


def test_the_report_says_how_to_get_what_is_missing(copied: Path) -> None:
    (copied / "corruptions.csv").unlink()
    assert main(["report", "-o", str(copied)]) == 0
    commands = [c for c in _commands((copied / "report.md").read_text()) if c[0] == "corruptions"]
    assert commands
    for command in commands:
        assert main(command) == 0
    assert rows(copied / "corruptions.csv")


def test_every_option_that_is_spoken_of_exists() -> None:
    """In all strings of the package: stages behind ``bu2td evaluate``, options behind two dashes."""
    from bu2td.arguments import Parser

    parser = Parser()
    add_arguments(parser)
    stages = next(a for a in parser._actions if a.choices).choices
    assert stages is not None
    options = {name for own in stages.values() for a in own._actions for name in a.option_strings}
    for path in Path(bu2td.evaluate.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for stage in re.findall(r"bu2td evaluate ([a-z]+)\b", node.value):
                    assert stage in stages, (path, node.value)
                for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]+(?![\w:-])", node.value):
                    known = option in options or option in ("--force-reinstall", "--help", "--no-deps")
                    assert known, (path, node.lineno, option)
