"""What the command lines share: arguments, their types, and how an answer or an error is printed."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bu2td.errors import Bu2tdError, FileError, PretrainedWarning, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
STOPPED = "bu2td: interrupted"

MODEL_HELP = (
    "timm's NAME, LIBRARY:NAME (torchvision, pytorchcv, transformers, monai, or bu2td, the paper's baselines), "
    "package.module:factory or file.py:factory"
)


def respond(options: argparse.Namespace) -> int:
    """Run the command that was chosen, ``options.run``, and print what it returns.

    Until then stdout is closed to everybody else. An error of bu2td is one line on stderr.

    Returns:
        The exit status: ``options.status``, or 2 for an error that bu2td names, 130 when interrupted, 141 when the
        reader of a pipe has gone.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", PretrainedWarning)
            warnings.showwarning = _say
            answer = options.run(options)
        print(answer, flush=True)
    except Bu2tdError as error:
        print(f"bu2td: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        return PIPE_CLOSED
    return int(options.status)


def _say(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning of bu2td as one line, as errors are."""
    print(f"bu2td: {type(message).__name__}: {message}", file=sys.stderr)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the process with one line where it is interrupted: importing large packages takes seconds.

    What is interrupted there is half imported, and some packages turn the interruption into an error of theirs.
    """

    def stop(*_: Any) -> NoReturn:
        os.write(2, f"{STOPPED}\n".encode())
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _let_go_of_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit does not fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Parser(argparse.ArgumentParser):
    """An argument parser that names what an unknown word may have meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and let the command that was chosen complain about what is left over."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(parsed, "parser", self)
            options = [name for action in parser._actions for name in action.option_strings]
            word = next((w for w in unknown if w.startswith("-")), "").partition("=")[0]
            hint = nearest(word, options, count=1) if word else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, each list as one word (`add_list`)."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(_joined(self, words), namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage and one line, and exit with status 2."""
        unknown = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            known = [word.strip(" '\"") for word in unknown[2].split(",")]
            message += nearest(unknown[1], known, count=1)
        super().error(message)


def about(text: str, **settings: str) -> dict[str, Any]:
    """Settings of a command's parser: what it does, in the list of commands and above its own help."""
    return {"help": text, "description": f"{text[0].upper()}{text[1:]}.", **settings}


#: The commands: settings of their parsers.
ABOUT = {
    "inspect": about("show the levels of a model and what each arrangement costs"),
    "convert": about("convert a model and save the network (bu2td.load reads it)"),
    "export": about("write a network as ONNX, of a file that bu2td convert wrote or of a model"),
    "draw": about("draw the bottom-up and the top-down network side by side"),
    "zoo": about(
        "convert every classifier of torchvision and timm, or of others, and keep what became of each in a table",
        epilog="Exit status: 0, refused networks included; 1 where a network failed, which is a fault of bu2td; 2 "
        "for an error. A sweep that was stopped goes on with --resume; rows deleted from FILE run again. Shards "
        "that run at the same time need files of their own; joined by cat, they make one FILE.",
    ),
    "erf": about(
        "show the receptive fields of a model and of its top-down network, level by level",
        epilog="Fields are in pixels. A size with + sees the whole image besides, through a global gate.",
    ),
    "evaluate": about(
        "train and compare bottom-up and top-down networks: accuracy, robustness, explanation",
        epilog="Settings come from --preset, then --config, then flags. With --resume, and for the experiments, "
        "what is not given comes from the run in FOLDER, and what is given adds to it. Lists are written with "
        "commas or spaces. Under torchrun, trainings share their batches and experiments their parts among the "
        "processes.",
    ),
    "doctor": about(
        "say what is installed here, and try a conversion",
        epilog="Exit status: 0; 1 where a package that everybody needs is missing, or a conversion fails.",
    ),
}


# --- lists --------------------------------------------------------------------------------------------

_OPEN, _CLOSE = "([{", ")]}"


class ListAction(argparse.Action):
    """A list that is written with commas or spaces; given again, the option has the later one.

    ``made`` turns the items, as words, into the value; an ``argparse.ArgumentTypeError`` of it is the user's error.
    ``again``: given again, the option adds to its list; ``made`` is told where, by an item "".
    """

    def __init__(
        self,
        *args: Any,
        made: Callable[[list[str]], Any] | None = None,
        numbers: bool = False,
        again: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self.made, self.numbers, self.again = made or _some, numbers, again

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Add the items of one word."""
        collected = namespace.__dict__.setdefault("_lists", {})
        before = collected.get(self.dest, []) if self.again else []
        items = [*before, *([""] if before else []), *split_list(values)]
        collected[self.dest] = items
        try:
            setattr(namespace, self.dest, self.made(items))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def _some(items: list[str]) -> list[str]:
    found = [item for item in items if item]
    if not found:
        raise argparse.ArgumentTypeError("expected at least one item")
    return found


def add_list(parser: Any, *flags: str, **settings: Any) -> None:
    """Add an option that takes a list: ``a,b``, ``a b`` or ``a, b``.

    Args:
        parser: a `Parser`, or a group of one.
        flags: names of the option.
        settings: as of ``add_argument``, and those of `ListAction`; ``numbers``: items start with a digit, so that
            what follows the list and does not is something else.
    """
    parser.add_argument(*flags, action=ListAction, **settings)


def split_list(text: str) -> list[str]:
    """The items of a list; commas and spaces inside brackets and quotes belong to an item."""
    items, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if (letter == "," or letter.isspace()) and depth <= 0 and not quote:
            items.append("")
        else:
            items[-1] += letter
    return [item for item in items if item]


def _joined(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """The words of a command line with every list as one of them.

    A list ends at the next option. Where the parser asks for words of its own (MODEL), the last word of a list at
    the end of the line is left to it.
    """
    lists = {name: a for a in parser._actions if isinstance(a, ListAction) for name in a.option_strings}
    found: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        found.append(word)
        if word == "--":
            return found + words[position:]
        if word not in lists:
            continue
        end = position
        while end < len(words) and not words[end].startswith("-") and _fits(words[end], lists[word]):
            end += 1
        if end == position < len(words) and not words[end].startswith("-"):  # the list says what is wrong with it
            end += 1
        own = words[position:end]
        position = end
        wanting = sum(not a.option_strings and a.nargs is None for a in parser._actions)
        taken = sum(not w.startswith("-") for w in _free(parser, found[:-1])) if wanting else 0
        left = own[1:][-(wanting - taken) :] if end == len(words) and wanting > taken else []
        own = own[: len(own) - len(left)]
        found += [",".join(own), *left]  # an empty word where there is none: the list complains itself
    return found


def _fits(word: str, action: ListAction) -> bool:
    return not action.numbers or word[:1].isdigit() or word.strip(",") == ""


def _free(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words that are neither options nor their values."""
    takes = {name for a in parser._actions if a.nargs != 0 for name in a.option_strings}
    return [word for before, word in zip(["", *words], words, strict=False) if before not in takes]


def add_run(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str]) -> None:
    """Let `respond` call ``run`` where this command is chosen."""
    parser.set_defaults(run=run, parser=parser, status=0)


def add_model(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str]) -> None:
    """The MODEL word of a command, and what it runs."""
    add_run(parser, run)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_input_size(parser: argparse.ArgumentParser) -> None:
    """The image size."""
    made = numbers(3, "C,H,W")
    add_list(
        parser,
        "--input-size",
        made=made,
        numbers=True,
        metavar="C,H,W",
        help="of the images; default: the model's own",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """JSON in place of tables."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def parse_arrangement(items: list[str]) -> str | tuple[int, ...]:
    """A word (which `bu2td.convert` checks) or level widths, of a list's items."""
    try:
        return tuple(int(width) for width in items) or ""
    except ValueError:
        return ",".join(items)


def parse_arrangements(items: list[str]) -> list[str | tuple[int, ...]]:
    """Several of them, of a list's items: words, and the widths between them as one ("" ends it)."""
    found: list[str | tuple[int, ...]] = []
    together = False
    for item in items:
        last = found[-1] if found else ""
        if item.isdecimal() and together and isinstance(last, tuple):
            found[-1] = (*last, int(item))
        elif item:
            found.append((int(item),) if item.isdecimal() else item)
        together = item.isdecimal()
    return found


def numbers(count: int | None, form: str) -> Callable[[list[str]], tuple[int, ...]]:
    """What a list makes of its items: whole numbers from 1 on, so many of them (None: any number)."""

    def parse(items: list[str]) -> tuple[int, ...]:
        try:
            sizes = tuple(int(size) for size in items)
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1 or (count is not None and len(sizes) != count):
            raise argparse.ArgumentTypeError(f"{','.join(items)!r} is not {form} in whole numbers of at least 1")
        return sizes

    return parse


def example_inputs(options: argparse.Namespace, model: nn.Module) -> Tensor | None:
    """The image size asked for, else a baseline's own, else None (bu2td's choice)."""
    import torch

    from bu2td.models.baselines import INPUT_SIZES

    size = options.input_size or INPUT_SIZES.get(options.model.removeprefix("bu2td:"))
    if size is None:
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.zeros((1, *size), device=device)


def check_folder(file: str) -> None:
    """Fail before a long conversion rather than after it."""
    path = Path(file)
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise FileError(f"{path} cannot be written: it is a folder")


def arrangement_word(arrangement: str | Sequence[int]) -> str:
    """An arrangement as it is written on the command line."""
    return arrangement if isinstance(arrangement, str) else ",".join(map(str, arrangement))
