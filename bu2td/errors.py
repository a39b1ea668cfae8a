"""The closed list of what can go wrong: one exception type per cause, all under `Bu2tdError`.

A message names what was found (with the graph node and its source line where there is one), what was
expected, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class Bu2tdError(Exception):
    """Base of every error that bu2td raises on purpose."""


class NotAModelError(Bu2tdError):
    """The first argument is not a live `torch.nn.Module` (or an analysis of one)."""


class WrappedModelError(Bu2tdError):
    """The model is wrapped for parallel training; the module inside is what can be converted."""


class CaptureError(Bu2tdError):
    """`torch.fx` cannot follow the model's forward (control flow on tensor values, for instance)."""


class ModelInputError(Bu2tdError):
    """The model does not take exactly one image (N, C, H, W)."""


class ModelOutputError(Bu2tdError):
    """The model does not return exactly one tensor of logits (auxiliary heads aside)."""


class ExampleInputError(Bu2tdError):
    """`example_inputs` is not an image batch that this model can run on."""


class ImageSizeError(Bu2tdError):
    """A network with layers that are bound to certain map sizes is given images of another size."""


class NoConvolutionError(Bu2tdError):
    """The model has no 2-d convolution."""


class DimensionalityError(Bu2tdError):
    """The model convolves in one or three dimensions."""


class NoReductionError(Bu2tdError):
    """Nothing in the model reduces resolution, so there is nothing to turn upside down."""


class TopologyError(Bu2tdError):
    """The model has no chain of single-resolution trunk tensors to build levels from."""


class UnsupportedOperationError(Bu2tdError):
    """Operations without a converter make the conversion impossible."""


class ConverterError(Bu2tdError):
    """A converter is registered twice, or does not keep to the interface."""


class OptionError(Bu2tdError):
    """An option or its value is unknown."""


class WidthError(Bu2tdError):
    """A width is below its minimum, or does not fit the model."""


class SigmaError(Bu2tdError):
    """The blur width of the pyramid is below its minimum."""


class ReductionError(Bu2tdError):
    """A reduction that was asked for is not on the model's ladder."""


class CostError(Bu2tdError):
    """The top-down network would cost more than `max_macs_ratio` allows."""


class PredictionError(Bu2tdError):
    """What a training step takes cannot be predicted: an operation has no form on meta tensors."""


class NonFiniteError(Bu2tdError):
    """Weights, images or gradients are not finite numbers where gradients are measured."""


class VerificationError(Bu2tdError):
    """A network does not satisfy the invariants of a top-down network."""


class OptimizeError(Bu2tdError):
    """A network cannot be optimised: its device or dtype is not supported, or it is fused already."""


class ExportError(Bu2tdError):
    """A network cannot be exported, or the file that was made computes something else."""


class FusedNetworkError(Bu2tdError):
    """A network that is optimised for inference is asked to train."""


class FileError(Bu2tdError):
    """A file is missing, unreadable or not what it should be."""


class DataError(Bu2tdError):
    """A data set's files are missing, damaged or of another form, or its labels do not fit the network."""


class RunFolderError(Bu2tdError):
    """A folder of results belongs to another run, or lacks what a command needs."""


class CopyError(Bu2tdError):
    """A network cannot be pickled, or written to a file, as it is now."""


class UnknownModelError(Bu2tdError):
    """No model of this name or factory."""


class MissingPackageError(Bu2tdError):
    """An optional package is not installed."""


class PretrainedWarning(UserWarning):
    """A trained network is converted, and the top-down network starts without its weights."""


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and no longer than that."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of numbers with too many digits, say
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, no longer than a line is; its class where it says nothing."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]}..."


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``' Did you mean a, b or c?'``, or an empty string when nothing known is similar."""
    matches = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
