"""``bu2td export MODEL -o FILE.onnx``: an ONNX file that was run before it was written."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import bu2td
from bu2td.arguments import add_input_size, add_model, check_folder, example_inputs
from bu2td.cli.structure import add_structure, structure
from bu2td.errors import OptionError
from bu2td.models import create_model
from bu2td.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_model(parser, run)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write, .onnx")
    parser.add_argument("--static", action="store_true", help="fix number, height and width of images")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="of --static; default: %(default)s")
    parser.add_argument("--normalize", action="store_true", help="let the file take images in [0, 1]")
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX; default: PyTorch's")
    add_structure(parser)
    add_input_size(parser)


def run(options: argparse.Namespace) -> str:
    """Load or convert, and export."""
    check_folder(options.output)
    network: Any = _loaded(options) if Path(options.model).is_file() else _converted(options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer says so, too
        done = bu2td.export(
            network,
            options.output,
            dynamic=not options.static,
            image_size=options.input_size[1:] if options.input_size else None,
            batch_size=options.batch_size,
            normalize=options.normalize,
            opset=options.opset,
        )
    return str(done)


def _loaded(options: argparse.Namespace) -> Any:
    plain = Options()
    asked = {"arrangement": options.arrangement, **structure(options)}
    given = [name for name, value in asked.items() if value != getattr(plain, name)]
    if given:
        raise OptionError(f"{options.model} is a converted network and has its {', '.join(given)} already")
    return bu2td.load(options.model)


def _converted(options: argparse.Namespace) -> Any:
    model = create_model(options.model, device="cpu")
    chosen: dict[str, Any] = {"arrangement": options.arrangement, **structure(options)}
    return bu2td.convert(
        model, example_inputs=example_inputs(options, model), device="cpu", max_macs_ratio=None, **chosen
    )
