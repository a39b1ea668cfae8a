"""Networks as files of other programs: `bu2td.export` writes ONNX, and checks what it wrote."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import operator
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import ExportError, FileError, NotAModelError, OptionError
from bu2td.files import replacing
from bu2td.options import as_count, as_size
from bu2td.packages import imported
from bu2td.programs import AXES, program_of
from bu2td.runtime import PatchNetwork, TopDownNetwork
from bu2td.version import __version__

#: Names of what a file reads and returns.
INPUT, OUTPUT = "images", "logits"
#: Largest difference of a file's logits from the network's, relative to the largest logit.
TOLERANCE = 1e-4
#: Files of this size and above need a second one beside them for their weights.
_LIMIT = 2**31


@dataclass(frozen=True)
class Checked:
    """What a file computed for random images.

    Attributes:
        shape: (N, C, H, W) of the images.
        difference: from the network's logits, the largest, relative to the largest logit.
    """

    shape: tuple[int, ...]
    difference: float


@dataclass(frozen=True)
class Exported:
    """A file that `export` wrote.

    Attributes:
        file: its path.
        shape: (N, C, H, W) of its images; a letter where any number will do.
        opset: of ONNX.
        normalised: whether the file normalises its images itself.
        checks: what was compared with the network; nothing where onnxruntime is not installed.
    """

    file: Path
    shape: tuple[int | str, ...]
    opset: int
    normalised: bool
    checks: tuple[Checked, ...]

    def __str__(self) -> str:
        size = self.file.stat().st_size / 2**20 if self.file.is_file() else 0.0
        took = "images in [0, 1], normalised inside" if self.normalised else "images as the network takes them"
        lines = [
            f"{self.file}: ONNX, opset {self.opset}, {size:.1f} MiB",
            f"{INPUT} ({', '.join(map(str, self.shape))}), {took} -> {OUTPUT}",
            *(f"onnxruntime at {'x'.join(map(str, c.shape))}: {c.difference:.1e} relative" for c in self.checks),
        ]
        return "\n".join(lines if self.checks else [*lines, NOT_CHECKED])


NOT_CHECKED = "onnxruntime is not installed, so that the file was not run. Run: pip install onnxruntime"


def export(
    network: TopDownNetwork | PatchNetwork,
    file: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    image_size: int | Sequence[int] | None = None,
    batch_size: int = 2,
    normalize: bool | tuple[Sequence[float], Sequence[float]] = False,
    classes: Sequence[str] | None = None,
    opset: int | None = None,
) -> Exported:
    """Write a network as an ONNX file, and run that file at three sizes before it takes its place.

    The file maps ``images`` (N, C, H, W) to ``logits`` (N, num_classes) in eval mode, and holds the network's
    recipe, versions, reductions and classes as metadata. Optimised networks are written in the ordinary form of
    their convolutions, which is right at every size.

    Args:
        network: what `bu2td.convert`, `bu2td.optimize` or `bu2td.load` returned, or a `PatchNetwork`; it is not
            changed.
        file: the file to write.
        dynamic: leave number, height and width of images open. Height and width stay fixed where layers are bound
            to them, and for a `PatchNetwork`, whose windows are cut to sizes in whole numbers.
        image_size: height and width to export with; by default the plan's.
        batch_size: images at once of a file that is not dynamic.
        normalize: True puts the mean and standard deviation of the network's ``pretrained_cfg`` in front, so that
            the file takes images in [0, 1]; or the pair (mean, std), each one number per channel.
        classes: names of the classes, for the metadata.
        opset: of ONNX; by default PyTorch's own choice.

    Returns:
        What was written, and how far its logits are from the network's; ``str()`` of it tells.

    Raises:
        NotAModelError: not a converted network.
        OptionError: an option is out of its range.
        ExportError: the network has no weights or not float32 ones, PyTorch cannot export it, or the file does
            not compute what the network does (no file is left then).
        MissingPackageError: onnx or onnxscript is not installed.
        FileError: the file cannot be written.
    """
    plain = _inner(network)
    _check_weights(network)
    for module in ("onnx", "onnxscript"):
        imported(module, "onnx onnxscript", "export needs it:")
    if not Path(file).parent.is_dir():
        raise FileError(f"{file} cannot be written: there is no folder {Path(file).parent}")
    channels, *planned = plain.plan.image_shape[1:]
    height, width = planned if image_size is None else as_size("image_size", image_size)
    free = _free(network, dynamic)
    shape = (max(2, batch_size) if "N" in free else as_count("batch_size", batch_size), channels, height, width)
    normalisation = _normalisation(plain, normalize, channels)
    metadata = _metadata(network, normalisation, classes)
    twin = _twin(network)
    program = _onnx(twin, torch.zeros(shape), free, normalisation, opset)
    letters = dict(zip(AXES.values(), AXES, strict=True))
    open_shape = tuple(letters[i] if letters.get(i) in free else size for i, size in enumerate(shape))
    _name(program, open_shape, metadata)
    with replacing(Path(file)) as temporary:
        with _failing("the file cannot be written"):
            program.save(temporary, external_data=False)
        checks = _checked(temporary, twin, normalisation, _shapes(shape, free))
    if not checks:
        warnings.warn(NOT_CHECKED, stacklevel=2)
    return Exported(Path(file), open_shape, _opset(program), normalisation is not None, checks)


# --- what is asked for --------------------------------------------------------------------------------


def _inner(network: Any) -> TopDownNetwork:
    """The converted network, inside of its patches where it has some."""
    if not isinstance(network, TopDownNetwork | PatchNetwork):
        raise NotAModelError(
            f"export takes a network that bu2td.convert returned, or a PatchNetwork, found {type(network)}"
        )
    return network if isinstance(network, TopDownNetwork) else network.network


def _check_weights(network: nn.Module) -> None:
    tensors = [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise ExportError("the network has no weights: it is on the meta device. Convert it without device='meta'")
    others = sorted({str(tensor.dtype) for tensor in tensors} - {"torch.float32"})
    if others:
        raise ExportError(f"export takes float32 weights, found {', '.join(others)}; call float() before")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size >= _LIMIT:
        raise ExportError(f"the weights take {size / 2**30:.1f} GiB, more than the 2 GiB that one ONNX file holds")


def _free(network: TopDownNetwork | PatchNetwork, dynamic: bool) -> tuple[str, ...]:
    """The axes that stay open."""
    if not dynamic:
        return ()
    bound = isinstance(network, PatchNetwork) or len(network.plan.check_sizes) < 2
    return ("N",) if bound else tuple(AXES)


def _normalisation(network: TopDownNetwork, wanted: Any, channels: int) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation, each (1, C, 1, 1)."""
    if wanted is False or wanted is None:
        return None
    if wanted is True:
        config = network.pretrained_cfg
        read = config.get if isinstance(config, dict) else lambda name: getattr(config, name, None)
        wanted = (read("mean"), read("std"))
        if None in wanted:
            raise ExportError("the network has no pretrained_cfg with mean and std; give normalize=(mean, std)")
    try:
        mean, std = (torch.tensor([float(v) for v in values]) for values in wanted)
    except (TypeError, ValueError):
        raise OptionError(f"normalize={wanted!r} must be True, or two lists of numbers: mean and std") from None
    if mean.numel() != channels or std.numel() != channels or not bool((std > 0).all()):
        raise OptionError(f"normalize={wanted!r} must hold {channels} numbers each, and no std of 0 or less")
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def _twin(network: TopDownNetwork | PatchNetwork) -> nn.Module:
    """A copy on the CPU, in eval mode and without checkpointing."""
    twin = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    _inner(twin).set_grad_checkpointing(False)
    return twin


# --- the file -----------------------------------------------------------------------------------------


def _floordiv(a: Any, b: Any) -> Any:
    """Python's ``a // b`` for whole numbers; ONNX's own division rounds towards zero."""
    from onnxscript import opset18 as op

    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def _onnx(
    network: nn.Module,
    images: Tensor,
    free: Sequence[str],
    normalisation: tuple[Tensor, Tensor] | None,
    opset: int | None,
) -> Any:
    with _failing("PyTorch cannot export this network"), _silent():
        program = program_of(network, images, free, normalisation)
        return torch.onnx.export(
            program,
            (images,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            custom_translation_table={operator.floordiv: _floordiv},
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn what other libraries raise into our own error."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise ExportError(f"{what}: {type(cause).__name__}: {' '.join(lines[:3]) or 'no message'}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what libraries tell of their own steps to themselves."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _metadata(
    network: TopDownNetwork | PatchNetwork,
    normalisation: tuple[Tensor, Tensor] | None,
    classes: Sequence[str] | None,
) -> dict[str, str]:
    plain = _inner(network)
    if classes is not None and len(classes) != plain.num_classes:
        raise OptionError(f"classes holds {len(classes)} names, but the network has {plain.num_classes} classes")
    data: dict[str, Any] = {
        "recipe": network.recipe,
        "version": __version__,
        "torch": str(torch.__version__),
        "reductions": list(plain.plan.ladder),
        "num_classes": plain.num_classes,
    }
    if classes is not None:
        data["classes"] = [str(name) for name in classes]
    if normalisation is not None:
        data |= {
            name: values.flatten().tolist() for name, values in zip(("mean", "std"), normalisation, strict=True)
        }
    return {f"bu2td.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in data.items()}


def _name(program: Any, shape: Sequence[int | str], metadata: dict[str, str]) -> None:
    """Name the open axes of images and logits, and add the metadata."""
    from onnxscript import ir

    model = program.model
    model.metadata_props.update(metadata)
    [images], [logits] = model.graph.inputs, model.graph.outputs
    images.shape = ir.Shape(shape)
    logits.shape = ir.Shape([shape[0], *list(logits.shape)[1:]])


def _opset(program: Any) -> int:
    return int(program.model.opset_imports[""])


# --- the check ----------------------------------------------------------------------------------------


def _shapes(shape: tuple[int, int, int, int], free: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """Three shapes that differ in what is open; sizes that no reduction divides."""
    n, channels, height, width = shape
    sizes = [(height, width), (height + 5, width + 14), (height + 19, width + 1)]
    return [
        (count if "N" in free else n, channels, *(size if "H" in free else (height, width)))
        for count, size in zip((n, 1, 3), sizes, strict=True)
    ]


def _checked(
    file: Path,
    network: nn.Module,
    normalisation: tuple[Tensor, Tensor] | None,
    shapes: Sequence[tuple[int, int, int, int]],
) -> tuple[Checked, ...]:
    """Run a file beside its network; nothing where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    runtime = imported("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    with _failing("onnxruntime cannot load the exported file"):
        session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    return tuple(_compared(session, network, normalisation, torch.rand(s, generator=generator)) for s in shapes)


def _compared(
    session: Any, network: nn.Module, normalisation: tuple[Tensor, Tensor] | None, images: Tensor
) -> Checked:
    shape = tuple(images.shape)
    with torch.no_grad():
        mean, std = normalisation or (0.0, 1.0)
        expected = network((images - mean) / std)
    with _failing(f"the exported file does not run at {'x'.join(map(str, shape))}"):
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    same = found.shape == expected.shape
    largest = expected.abs().max().clamp_min(1e-12)
    difference = float((found - expected).abs().max() / largest) if same else float("nan")
    if not difference <= TOLERANCE:
        what = f"differ by {difference:.1e} relative" if same else f"have shape {tuple(found.shape)}"
        raise ExportError(
            f"the exported file computes something else: at images {'x'.join(map(str, shape))} its logits {what}, "
            f"expected {tuple(expected.shape)} within {TOLERANCE:.0e}. Nothing was written; "
            f"dynamic=False exports one size alone"
        )
    return Checked(shape, difference)
