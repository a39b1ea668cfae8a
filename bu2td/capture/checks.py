"""What is taken: one live network of 2-d convolutions, with one image batch for its input."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.errors import (
    CaptureError,
    DimensionalityError,
    ExampleInputError,
    ModelInputError,
    NoConvolutionError,
    NotAModelError,
    WrappedModelError,
)
from bu2td.ops import Role, converter_for, converter_for_type

#: Modules that run a model on several devices, by name: some are not there on every platform.
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def unwrapped(model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that was passed, and notes on what was taken off it.

    Raises:
        NotAModelError: it is no module.
        WrappedModelError: it is spread over devices.
    """
    notes: tuple[str, ...] = ()
    if isinstance(model, nn.Module) and hasattr(model, "_orig_mod"):
        model = model._orig_mod
        notes = ("the model was compiled; its original module is converted",)
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"{type(model)}"
        remedy = "call it first" if callable(model) else "build the model first"
        raise NotAModelError(
            f"convert and analyze take a live torch.nn.Module, found {found}; {remedy}, for example "
            f"bu2td.convert(timm.create_model('resnet18'))"
        )
    if type(model).__name__ in _WRAPPERS:
        raise WrappedModelError(
            f"the model is wrapped in {type(model).__name__}; pass the module inside, model.module, "
            f"and wrap the converted network"
        )
    return model, notes


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be traced or holds no weights of its own, and what is no network of 2-d convolutions.

    Raises:
        CaptureError, DimensionalityError, ModelInputError, NoConvolutionError, NotAModelError: see `bu2td.errors`.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module cannot be traced; pass the eager module that it was made from")
    for module in model.modules():
        _check_weights(module)
    _check_signature(model)


def _check_weights(module: nn.Module) -> None:
    """Refuse weights that are not there yet, or are computed from others by a hook or parametrisation."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise NotAModelError(f"{type(module).__name__} is lazy and has no weights yet; run the model once first")
    hooks = [h for h in module._forward_pre_hooks.values() if type(h).__module__.startswith("torch.nn.utils")]
    parametrised = getattr(module, "parametrizations", {}) if nn.utils.parametrize.is_parametrized(module) else {}
    of_hook = next((n for h in hooks for key in ("name", "_tensor_name") if (n := getattr(h, key, None))), "weight")
    name = next(iter(parametrised), of_hook)
    if parametrised:
        what, undo = type(parametrised[name][0]).__name__.strip("_"), "parametrize.remove_parametrizations"
    elif hooks:
        what = type(hooks[0]).__name__
        undo = _UNDONE.get(what, "prune.remove" if type(hooks[0]).__module__.endswith("prune") else "")
    if parametrised or hooks:
        remedy = f"torch.nn.utils.{undo}(module, {name!r})" if undo else "take its hook off"
        raise CaptureError(
            f"the {name} of a {type(module).__name__} is computed by {what} from other parameters, of which the "
            f"converted network would know nothing; undo it before converting: {remedy}"
        )


#: What undoes a hook that computes a weight, in torch.nn.utils.
_UNDONE = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}


def check_layers(model: nn.Module) -> None:
    """Refuse a model none of whose layers and parameters can be those of a 2-d convolution.

    Raises:
        DimensionalityError: it convolves in one or three dimensions.
        NoConvolutionError: it does not convolve.
    """
    if _convolves(model) or any(p.dim() == 4 for p in model.parameters()):
        return
    name = type(model).__name__
    others = sorted({type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv3d)})
    if others:
        raise DimensionalityError(
            f"{name} convolves in {', '.join(others)}; only networks of 2-d "
            f"convolutions over images (N, C, H, W) can be converted"
        )
    raise NoConvolutionError(
        f"{name} has no 2-d convolution; only convolutional networks can be turned upside down"
    )


def check_convolutions(model: nn.Module, graph_module: fx.GraphModule) -> None:
    """Refuse a model that does not convolve in two dimensions, neither by layers nor by functions.

    Raises:
        DimensionalityError, NoConvolutionError: see `check_layers`.
    """
    modules = dict(graph_module.named_modules())
    nodes = graph_module.graph.nodes
    if not any(converter_for(n, modules.get(str(n.target))).role is Role.CONV for n in nodes):
        check_layers(model)


def _convolves(model: nn.Module) -> bool:
    return any(
        converter.role is Role.CONV
        for m in model.modules()
        if (converter := converter_for_type(type(m))) is not None
    )


def _check_signature(model: nn.Module) -> None:
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes = [p for p in parameters if p.kind in positional]
    required = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
    required += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) > 1:
        raise ModelInputError(
            f"{type(model).__name__}.forward needs {len(required)} inputs ({', '.join(required)}); "
            f"only networks with one image input (N, C, H, W) can be converted"
        )
    if not takes and not any_number:
        raise ModelInputError(
            f"{type(model).__name__}.forward takes no input; it must take one image batch (N, C, H, W)"
        )


def check_images(example_inputs: Any) -> None:
    """Refuse example inputs that are no image batch.

    Raises:
        ExampleInputError: they are something else, or empty.
    """
    if example_inputs is None:
        return
    if not isinstance(example_inputs, Tensor):
        raise ExampleInputError(f"example_inputs must be one tensor (N, C, H, W), found {type(example_inputs)}")
    shape = tuple(example_inputs.shape)
    if len(shape) != 4 or not example_inputs.is_floating_point():
        raise ExampleInputError(
            f"example_inputs must be a floating point image batch (N, C, H, W), found shape {shape} of "
            f"{example_inputs.dtype}"
        )
    if min(shape) < 1:
        raise ExampleInputError(f"example_inputs is empty: its shape is {shape}")
