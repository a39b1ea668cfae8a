"""Functional forms: functions and tensor methods that do what a module of torch.nn does, by their bare names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from bu2td.capture.draft import Draft, function_name, nodes_in, settings

_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish),
)


def _clamp(min: Any = None, max: Any = None) -> nn.Module:
    """The activation that people write as a clamp to these bounds."""
    acts: dict[Any, type[nn.Module]] = {(0, None): nn.ReLU, (0, 6): nn.ReLU6}
    if (min, max) not in acts:
        raise ValueError(f"no activation clamps to {min} .. {max}")
    return acts[min, max]()


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


_FORMS: dict[str, Callable[..., nn.Module]] = {
    **{act.__name__.lower(): act for act in _ACTIVATIONS},
    "leaky_relu": nn.LeakyReLU,
    "threshold": nn.Threshold,
    "rrelu": lambda lower=1 / 8, upper=1 / 3, training=False, inplace=False: nn.RReLU(lower, upper, inplace),
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "pixel_unshuffle": nn.PixelUnshuffle,
    "pixel_shuffle": nn.PixelShuffle,
    "lp_pool2d": nn.LPPool2d,
    "alpha_dropout": lambda p=0.5, training=True, inplace=False: nn.AlphaDropout(p, inplace),
    "feature_dropout": lambda p=0.5, training=True, inplace=False: nn.Dropout2d(p, inplace),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "max_pool2d": _max_pool,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "dropout": lambda p=0.5, training=True, inplace=False: nn.Dropout(p, inplace),
    "dropout2d": lambda p=0.5, training=True, inplace=False: nn.Dropout2d(p, inplace),
}

#: Dropout of torch.nn, which a forward may write as a function, in train mode alone or in both.
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

#: Poolings over the whole map, where the window is as large as the map.
_WHOLE = {"avg_pool2d": nn.AdaptiveAvgPool2d, "max_pool2d": nn.AdaptiveMaxPool2d}


def functional_form(draft: Draft, node: fx.Node) -> bool:
    """Functional activations, poolings and dropout are modules: ``F.relu(x)`` is ``nn.ReLU()(x)``."""
    return _become(draft, node, _as_module(node))


def _as_module(node: fx.Node) -> nn.Module | None:
    """The module that does what a function does, if its settings are numbers that the module has too."""
    build = _FORMS.get(function_name(node))
    by_position, by_keyword = settings(node)
    reads_one = bool(node.args) and isinstance(node.args[0], fx.Node)
    if build is None or not reads_one or nodes_in((by_position, by_keyword)):
        return None
    try:
        return build(*by_position, **by_keyword)
    except (TypeError, ValueError):
        return None


def whole_map_pool(draft: Draft, node: fx.Node) -> bool:
    """A pooling whose window is as large as its map is adaptive: ``F.avg_pool2d(x, x.shape[2:])``."""
    pool = _WHOLE.get(function_name(node))
    return _become(draft, node, pool(1) if pool is not None and _covers_its_map(draft, node) else None)


def _become(draft: Draft, node: fx.Node, module: nn.Module | None) -> bool:
    """Call a module, if there is one, in place of a function of the same first argument."""
    if module is None:
        return False
    source: Any = node.args[0]
    draft.call_instead(node, function_name(node), module, source)
    draft.graph.erase_node(node)
    return True


def _covers_its_map(draft: Draft, node: fx.Node) -> bool:
    """Whether the window of a pooling is read from a size, and one position comes out at all sizes."""
    by_position, by_keyword = settings(node)
    if not nodes_in((by_position, by_keyword)) or not (node.args and isinstance(node.args[0], fx.Node)):
        return False
    found = draft.traced.values.of(node)
    return all(isinstance(value, Tensor) and value.shape[2:] == (1, 1) for value in found)
