"""Faster networks with the same function: `bu2td.optimize`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import NotAModelError, OptimizeError, OptionError, VerificationError, first_line, nearest, shown
from bu2td.graph import full_precision, undisturbed
from bu2td.ir import Optimization
from bu2td.optimization.cost_model import MODES, TUNES, Chooser, check_choices
from bu2td.optimization.transform import transform
from bu2td.optimization.tuning import Finding, Task, tuned
from bu2td.options import as_count, as_size
from bu2td.runtime import TopDownNetwork

#: Relative difference of the logits that is allowed.
TOLERANCE = 1e-4
_DTYPES = (torch.float32, torch.float64)
_DEVICES = ("cpu", "cuda", "xpu", "mps")
_BATCH = {"training": 32, "inference": 1}


@undisturbed()
def optimize(
    network: TopDownNetwork,
    mode: str = "inference",
    *,
    batch_size: int | None = None,
    image_size: int | Sequence[int] | None = None,
    rules: Mapping[str, str] | None = None,
    force: Mapping[str, bool] | None = None,
    tune: str | None = None,
    example_inputs: Tensor | None = None,
) -> TopDownNetwork:
    """Make a network faster and leaner without changing its function.

    With ``example_inputs`` the choices are measured on this machine, within a minute, and kept in the user's cache
    folder (``BU2TD_CACHE``, else ``bu2td`` in ``XDG_CACHE_HOME`` or ``~/.cache``): the forms of every convolution
    alone, then the network as a whole against the network that went in. What does not gain is taken back.

    Args:
        network: what `bu2td.convert`, `bu2td.load` or this function (in mode "training") returned; it is not
            changed.
        mode: "training" keeps every parameter under its name, so that the result trains, and its state_dict is
            the network's. "inference" also folds norms and fuses calls; the result is in eval mode for good.
        batch_size: how many images at once to decide for; by default 32 for training and 1 for inference.
        image_size: height and width to decide for; by default those of the plan. Any size runs.
        rules: rewrite (`bu2td.optimization.RULES`) -> "auto" (where it is faster by the cost model), "always",
            "never".
        force: module path, or pattern of paths such as ``"r16_up.*"`` -> whether to rewrite there.
        tune: what decides where a rewrite's worth depends on the machine: "measure", a cost "model", which leaves
            alone what it is not sure of, or "off", nothing: such rewrites are not made. By default "measure" with
            example inputs, else "model".
        example_inputs: images (N, C, H, W) as the network will see them, on its device; their sizes are decided
            for. "measure" without them measures with random images.

    Returns:
        A new `TopDownNetwork`, whose ``optimization`` tells what was rewritten and why; ``str()`` of it is a
        table. `bu2td.save` and `bu2td.load` take it as any other.

    Raises:
        NotAModelError: not a converted network.
        OptionError: an unknown mode, rule or choice, a size that is none, or example inputs that are no images.
        OptimizeError: the network has no weights, its device or dtype is not supported, it is fused already, or it
            does not run on the images.
        VerificationError: the result differs from the network by more than 1e-4 relative.
    """
    _check(network, mode)
    rules = {} if rules is None else rules
    force = {} if force is None else force
    check_choices(rules, force)
    device = next(network.parameters()).device.type
    size, count, given = _sizes(network, mode, batch_size, image_size, example_inputs)
    tune = _tune(tune, example_inputs)
    shape = (count, *size)
    found = Finding()
    if tune == "measure":
        images = torch.rand(shape) if given is None else given
        task = Task(network, mode, images.detach().to(next(network.parameters())), rules, force)
        _copied(network)  # a network that cannot be copied is refused with its own words
        twin, choose, found = tuned(task)
    else:
        twin = _copied(network)
        twin.set_grad_checkpointing(False)
        choose = Chooser(mode, device, count, rules, force, tune=tune)
        transform(twin, choose, shape)
    before = network.optimization.made if network.optimization else ()
    worst = _difference(network, twin, shape)
    rewrites = (*before, *choose.made)
    done = Optimization(mode, device, count, shape[2:], rewrites, worst, tune, found.seconds, found.batch)
    twin.record = twin.record.with_recipe(optimization=done)
    if mode == "training":
        if network.checkpointing is not None:
            twin.set_grad_checkpointing(True, **network.checkpointing)
        twin.train(network.training)
    return twin


def _tune(tune: Any, example_inputs: Any) -> str:
    if tune is None:
        return "model" if example_inputs is None else "measure"
    if tune not in TUNES:
        raise OptionError(f"tune={tune!r} must be one of {TUNES}.{nearest(str(tune), TUNES)}")
    return str(tune)


def _sizes(
    network: TopDownNetwork, mode: str, batch_size: Any, image_size: Any, images: Any
) -> tuple[tuple[int, int, int], int, Tensor | None]:
    """(C, H, W) and the number of images to decide for, and the example inputs.

    Raises:
        OptionError: the example inputs are no images for the network, or of other sizes than asked for.
    """
    shape = _shape(network, image_size)
    count = as_count("batch_size", _BATCH[mode] if batch_size is None else batch_size)
    if images is None:
        return shape[1:], count, None
    wanted = f"images (N, {shape[1]}, H, W) of floating point"
    if not isinstance(images, Tensor):
        raise OptionError(f"example_inputs must be a tensor of {wanted}, found {type(images).__name__}")
    found = tuple(images.shape)
    if len(found) != 4 or found[1] != shape[1] or 0 in found or not images.is_floating_point():
        raise OptionError(f"example_inputs must be {wanted}, found {images.dtype} of shape {found}")
    device = next(network.parameters()).device
    if images.device != device:
        raise OptionError(
            f"example_inputs are on {images.device}, the network on {device}; choices are measured where the "
            f"network is: move either with .to(device)"
        )
    for name, asked, own in (
        ("batch_size", batch_size, found[0]),
        ("image_size", None if image_size is None else shape[2:], found[2:]),
    ):
        if asked is not None and asked != own:
            raise OptionError(f"{name}={asked} contradicts example_inputs of shape {found}; leave one of them out")
    return found[1:], found[0], images


def _copied(network: TopDownNetwork) -> TopDownNetwork:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise OptimizeError(
            f"the network cannot be copied ({first_line(error)}); remove what copy.deepcopy cannot copy "
            f"(weights that hooks compute, open files), or optimise first"
        ) from error


def _check(network: Any, mode: Any) -> None:
    if not isinstance(network, TopDownNetwork):
        raise NotAModelError(f"optimize takes a network that bu2td.convert returned, found {type(network)}")
    if not isinstance(mode, str) or mode not in MODES:
        raise OptionError(
            f"mode={shown(mode)} must be one of {MODES}.{nearest(mode, MODES) if isinstance(mode, str) else ''}"
        )
    if network.is_fused:
        raise OptimizeError(
            "this network is optimised for inference already, which cannot be undone; optimise the network that it "
            "was made of"
        )
    _check_weights(network)


def _check_weights(network: TopDownNetwork) -> None:
    devices = {tensor.device for tensor in network.parameters()}
    dtypes = {tensor.dtype for tensor in network.parameters()}
    if len(devices) != 1 or next(iter(devices)).type not in _DEVICES:
        found = ", ".join(sorted(map(str, devices))) or "no parameters at all"
        raise OptimizeError(
            f"optimize takes a network with weights on one device of {_DEVICES}, found {found}; move it with "
            f"td.to(device), or convert without device='meta'"
        )
    if len(dtypes) != 1 or next(iter(dtypes)) not in _DTYPES:
        found = ", ".join(sorted(map(str, dtypes)))
        raise OptimizeError(
            f"optimize takes a network of torch.float32 or torch.float64, found {found}; optimise in float32 and "
            f"convert the result, or use torch.autocast"
        )


def _shape(network: TopDownNetwork, size: Any) -> tuple[int, int, int, int]:
    n, channels, height, width = network.plan.image_shape
    return n, channels, *((height, width) if size is None else as_size("image_size", size))


# --- the same function --------------------------------------------------------------------------------


@full_precision()
def _difference(network: TopDownNetwork, twin: TopDownNetwork, shape: tuple[int, ...]) -> float:
    """The largest difference of the logits in eval mode, relative to the largest logit, over several sizes.

    Raises:
        VerificationError: it is too large.
    """
    sizes = dict.fromkeys([shape[2:], *network.plan.check_sizes])
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    first = next(network.parameters())
    with torch.no_grad(), _evaluating(network), _evaluating(twin):
        for size in sizes:
            images = torch.rand((1, shape[1], *size), generator=generator).to(first)
            expected, found = network(images), twin(images)
            worst = max(worst, _relative(found, expected))
    if not worst <= TOLERANCE:
        raise VerificationError(
            f"the optimised network differs from the network by {worst:.1e} relative, more than "
            f"{TOLERANCE:.0e}. This is a fault of the optimisation, please report it together with the model"
        )
    return worst


def _relative(found: Tensor, expected: Tensor) -> float:
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
