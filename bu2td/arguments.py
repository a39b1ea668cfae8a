"""What the command lines share: arguments, their types, and how an answer or an error is printed."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bu2td.errors import Bu2tdError, FileError, nearest
from bu2td.models.baselines import INPUT_SIZES

FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

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
            answer = options.run(options)
        print(answer, flush=True)
    except Bu2tdError as error:
        print(f"bu2td: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        return PIPE_CLOSED
    return int(options.status)


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


def add_run(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str]) -> None:
    """Let `respond` call ``run`` where this command is chosen."""
    parser.set_defaults(run=run, parser=parser, status=0)


def add_model(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str]) -> None:
    """The MODEL word of a command, and what it runs."""
    add_run(parser, run)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)


def add_input_size(parser: argparse.ArgumentParser) -> None:
    """The image size."""
    parser.add_argument(
        "--input-size", type=numbers(3, "C,H,W"), metavar="C,H,W", help="of the images; default: the model's own"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """JSON in place of tables."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def parse_arrangement(text: str) -> str | tuple[int, ...]:
    """A word (which `bu2td.convert` checks) or level widths."""
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        return text


def numbers(count: int | None, form: str) -> Callable[[str], tuple[int, ...]]:
    """A type of argument: whole numbers from 1 on, so many of them (None: any number)."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            sizes = tuple(int(size) for size in text.split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1 or (count is not None and len(sizes) != count):
            raise argparse.ArgumentTypeError(f"{text!r} is not {form} in whole numbers of at least 1")
        return sizes

    return parse


def example_inputs(options: argparse.Namespace, model: nn.Module) -> Tensor | None:
    """The image size asked for, else a baseline's own, else None (bu2td's choice)."""
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
