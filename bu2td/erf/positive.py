"""A positive copy of a network: the support of its input gradient is the theoretical receptive field.

A real network's gradient can vanish inside its field: paths cancel, activations are flat, a maximum picks one
pixel. The positive copy has the same wiring, and no path of it can vanish or cancel:

==============================  ======================================================================
in the network                  in the copy
==============================  ======================================================================
convolution, linear layer       all weights are one positive constant, no bias; kernel, stride, padding,
                                dilation and groups stay
max pooling                     average pooling over the same windows
norm, activation, dropout       identity (statistics over positions are a gate: they see all of the map)
multiplication, sum             the sum of those operands that are maps. A gate that is pooled over the
                                map (squeeze-and-excite, global response norm), a layer scale and a
                                constant are left out, which cuts the gate
map made from pooled values     detached, which cuts it
softmax, clamp, power, ...      identity
maximum, norm over channels     mean over channels
everything else that moves      stays: concat, split, views, padding, resampling, pyramid
values
==============================  ======================================================================

With constant weights a dense convolution is the mean over its input channels, one box filter, and a broadcast to
its output channels. It is computed so, and a map whose channels are equal stays one channel ("thin") until an
operation tells channels apart, which makes canvases of thousands of pixels cheap. All is float64, where a path
through hundreds of windows is still far from underflow.

Attention (matrix products of positions, softmax over positions) reaches the whole map by design and is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.canonical import source_line
from bu2td.converter import drop_hooks
from bu2td.erf.subject import Subject, subject
from bu2td.errors import UnsupportedOperationError
from bu2td.nn import Pyramid, TransposedUpsample, Upsample
from bu2td.plan import Capture, Value
from bu2td.probe import is_tensor
from bu2td.view import GraphView

__all__ = ["positive_copy"]

#: Roles of operations that become the identity.
_IDENTITIES = ("norm", "act", "norm_act", "dropout")

#: Views among the operations of role "pass"; the others act on every value alone.
_VIEWS = (
    *("permute", "transpose", "swapaxes", "flatten", "unflatten", "view", "view_as", "reshape", "reshape_as"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "repeat", "getitem"),
)

#: Reductions that are not linear.
_STATISTICS = ("amax", "std", "var", "norm")

#: Ways to resample with positive weights.
_MODES = ("nearest", "nearest-exact", "bilinear", "area")

#: Pyramid reducers by one with the same taps and positive weights.
_REDUCERS = {"gaussian": "gaussian", "strided": "strided", "average": "average", "max": "average"}


def positive_copy(
    model: Any, *, layers: str | Sequence[str] = "levels", example_inputs: Tensor | None = None
) -> nn.Module:
    """Copy a network with positive weights, linear and without gates (this module has the list).

    The input gradient of any unit of the copy is positive in every pixel from which a path leads to it, and zero
    elsewhere: up to holes of dilation and stride, its support is the theoretical receptive field.

    Args:
        model: a live bottom-up network, its analysis, or a `TopDownNetwork`, with weights or on meta.
        layers: what the copy returns: "levels", or names of levels, nodes or modules.
        example_inputs: an image batch, which fixes channels and nominal size as in `bu2td.analyze`.

    Returns:
        A graph module in float64 on the CPU, which maps images (N, C, H, W) to a tuple of the layers' outputs.
        Its nodes have the names that they have in the network.

    Raises:
        Bu2tdError: as `bu2td.analyze`; `UnsupportedOperationError` where a layer depends on attention or on an
            operation that this module has no rule for; it names them all.
    """
    looked_at = subject(model, example_inputs)
    return positive_graph(looked_at, list(looked_at.nodes_of(layers).values()))


def positive_graph(looked_at: Subject, outputs: Sequence[str]) -> fx.GraphModule:
    """The positive copy of a `Subject`; see `positive_copy`."""
    return _Positive(looked_at).build(outputs)


class _Positive:
    def __init__(self, looked_at: Subject) -> None:
        source = looked_at.graph_module
        self.dims = looked_at.dims
        self.view = GraphView(Capture(source, looked_at.source, looked_at.image_shape, {}, ""), looked_at.dims)
        self.source = source
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.env: dict[fx.Node, fx.Node] = {}
        self.thin: set[str] = set()
        self.refused: list[str] = []

    def build(self, outputs: Sequence[str]) -> fx.GraphModule:
        needed = self._ancestors(outputs)
        for node in self.source.graph.nodes:
            if node in needed:
                self.env[node] = self._node(node)
        if self.refused:
            raise UnsupportedOperationError(
                "a positive copy has no rule for operations that the layers depend on:\n  "
                + "\n  ".join(self.refused)
            )
        self.graph.output(tuple(self._full(self.view.nodes[name]) for name in outputs))
        network = fx.GraphModule(self.root, self.graph)
        network.to_empty(device="cpu")
        network.requires_grad_(False).double().eval()
        with torch.no_grad():
            for tensor in [*network.parameters(), *network.buffers()]:
                tensor.fill_(1 / max(tensor[:1].numel(), 1) ** 0.5 if tensor.is_floating_point() else 0)
        return network

    def _ancestors(self, outputs: Sequence[str]) -> set[fx.Node]:
        stack = [self.view.nodes[name] for name in outputs]
        seen = set(stack)
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return seen

    # -- one node ----------------------------------------------------------------------------------

    def _node(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder" or not _is_map(self.dims.get(node.name)):
            return self._same(node)
        maps = [n for n in node.all_input_nodes if _is_map(self.dims.get(n.name))]
        if not maps:
            made = self._same(node)
            made.name = f"{node.name}_made"
            return self._call(node, _detached, made)
        module = self.view.module(node.name)
        role = self.view.role(node.name)
        thin = maps[0].name in self.thin
        if isinstance(module, Pyramid):
            return self._pyramid(node, module)
        if isinstance(module, TransposedUpsample):
            self.thin.add(node.name)
            return self._module(node, _BoxTransposed(module.stride[0]), *node.args)
        if role in _IDENTITIES:
            return self._passed(node, maps[0])
        if role == "conv":
            if thin or self.view.module(node.name).groups == 1:
                self.thin.add(node.name)
            return self._module(node, _BoxConv(module), maps[0])
        if role in ("add", "mul"):
            return self._sum(node, maps)
        if role == "pool":
            return self._pool(node, module)
        if role == "linear":
            return self._linear(node, module)
        if role == "pass":
            return self._pass(node, module)
        if role == "gate":
            return self._reduction(node)
        if isinstance(module, Upsample) or (role == "resample" and _mode(node, module) in _MODES):
            return self._same(node, thin)
        if role in ("concat", "split", "pad"):
            return self._same(node)
        return self._refuse(node)

    def _same(self, node: fx.Node, thin: bool = False) -> fx.Node:
        """The node as it is; with ``thin``, on maps of one channel."""
        self._keep(node)
        if thin:
            self.thin.add(node.name)
        return self.graph.node_copy(node, self.env.__getitem__ if thin else self._full)

    def _full(self, source: fx.Node) -> fx.Node:
        """A source with all its channels."""
        if source.name not in self.thin:
            return self.env[source]
        return self.graph.call_function(_widened, (self.env[source], self.dims[source.name][1].size))

    def _passed(self, node: fx.Node, source: fx.Node) -> fx.Node:
        if source.name in self.thin:
            self.thin.add(node.name)
        return self._call(node, _passed, self.env[source])

    def _sum(self, node: fx.Node, maps: list[fx.Node]) -> fx.Node:
        if all(source.name in self.thin for source in maps):
            self.thin.add(node.name)
            return self._call(node, _summed, [self.env[source] for source in maps], None)
        sizes = [d.size if d.kind == "channel" else -1 for d in self.dims[node.name]]
        return self._call(node, _summed, [self._full(source) for source in maps], sizes)

    def _keep(self, node: fx.Node) -> None:
        target = str(node.target)
        if node.op == "call_module":
            module = copy.deepcopy(self.source.get_submodule(target))
            for part in module.modules():
                drop_hooks(part)
            self.root[target] = module
        elif node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            self.root[target] = getattr(self.source.get_submodule(owner), name)

    def _call(self, node: fx.Node, function: Any, *args: Any) -> fx.Node:
        return self.graph.create_node("call_function", function, args, name=node.name)

    def _module(self, node: fx.Node, module: nn.Module, *sources: Any) -> fx.Node:
        """Call a module that works on full and on thin maps alike."""
        target = f"positive.{node.name}"
        self.root[target] = module
        args = tuple(self.env[s] if isinstance(s, fx.Node) else s for s in sources)
        return self.graph.create_node("call_module", target, args, name=node.name)

    def _refuse(self, node: fx.Node) -> fx.Node:
        module = self.view.module(node.name)
        what = f"{node.target} ({type(module).__name__})" if module is not None else str(node.target)
        self.refused.append(f"{what} at {source_line(node)}")
        return self.graph.node_copy(node, self._full)

    def _pyramid(self, node: fx.Node, pyramid: Pyramid) -> fx.Node:
        if pyramid.reducer not in _REDUCERS:
            return self._refuse(node)
        new = Pyramid(pyramid.reductions, _REDUCERS[pyramid.reducer], pyramid.sigma)
        return self._module(node, new, *node.args)

    def _pool(self, node: fx.Node, module: nn.Module | None) -> fx.Node:
        if module is None or isinstance(module, nn.PixelUnshuffle) or type(module).__name__ == "SpaceToDepth":
            return self._same(node)
        source: Any = node.args[0]
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d) or type(module).__name__ == "BlurPool2d":
            if source.name in self.thin:
                self.thin.add(node.name)
            return self._module(node, _BoxPool(module), source)
        kernel, stride = self.view.kernel(node.name), self.view.stride(node.name)
        if kernel != stride:
            return self._refuse(node)
        self.thin.add(node.name)
        return self._module(node, _BoxConv(nn.Conv2d(1, 1, kernel, stride, device="meta")), source)

    def _linear(self, node: fx.Node, module: Any) -> fx.Node:
        source: Any = node.args[0]
        if self.dims[source.name][-1].kind != "channel":
            return self._refuse(node)
        return self._call(node, _mixed, self._full(source), module.out_features)

    def _pass(self, node: fx.Node, module: Any) -> fx.Node:
        source: Any = node.args[0]
        target = _name(node)
        if isinstance(module, nn.Flatten | nn.Unflatten) or type(module).__name__ == "Permute" or target in _VIEWS:
            return self._same(node)
        if "softmax" in target or isinstance(module, nn.Softmax):
            axis = self.view.site(node.name).argument(1, "dim") if module is None else module.dim
            if axis is None or self.dims[source.name][axis].kind in ("height", "width", "token", "mixed"):
                return self._refuse(node)
        return self._passed(node, source)

    def _reduction(self, node: fx.Node) -> fx.Node:
        source: Any = node.args[0]
        if _name(node) not in _STATISTICS:
            return self._same(node) if _name(node) in ("mean", "sum") else self._refuse(node)
        before, behind = self.dims[source.name], self.dims[node.name]
        if len(before) != len(behind):
            return self._refuse(node)
        axes = [i for i, (a, b) in enumerate(zip(before, behind, strict=True)) if a.size != b.size]
        return self._call(node, torch.mean, self._full(source), axes, True)


def _is_map(value: Value) -> bool:
    """Whether a value still counts rows and columns; what is pooled along one of them is a gate."""
    if value is None or not isinstance(value, tuple):
        return False
    if not is_tensor(value):
        return any(_is_map(part) for part in value)
    kinds = {d.kind for d in value}
    return {"height", "width"} <= kinds or "token" in kinds or "mixed" in kinds


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _mode(node: fx.Node, module: Any) -> str:
    return str(getattr(module, "mode", None) or node.kwargs.get("mode", "nearest"))


# --- what the copy runs -------------------------------------------------------------------------------


def _passed(x: Tensor) -> Tensor:
    return x


def _detached(x: Tensor) -> Tensor:
    return x.detach()


def _widened(x: Tensor, channels: int) -> Tensor:
    return x.expand(-1, channels, -1, -1)


def _summed(operands: list[Tensor], sizes: list[int] | None) -> Tensor:
    """The sum of maps; with the sizes of the value that it stands for, if they are not one channel."""
    total = operands[0]
    for operand in operands[1:]:
        total = total + operand
    return total if sizes is None else total.expand(sizes)


def _mixed(x: Tensor, channels: int) -> Tensor:
    """A linear layer of constant weights over the last dimension."""
    return x.mean(-1, keepdim=True).expand(*x.shape[:-1], channels)


def _same_pad(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel behind."""
    pad: list[int] = []
    for size, k, s, d in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pad = [total // 2, total - total // 2, *pad]
    return F.pad(x, pad)


def _pads_itself(module: Any) -> bool:
    """Whether a module of timm pads as TensorFlow does, while it runs."""
    flags = getattr(module, "same_pad", False) or getattr(module, "dynamic_padding", False)
    return bool(flags) or type(module).__name__ in ("Conv2dSame", "AvgPool2dSame", "MaxPool2dSame")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


class _BoxConv(nn.Module):
    """A convolution of constant weights: channels of a group are averaged and filtered by a box.

    Shapes: (N, C, H, W) -> (N, 1, H', W') for one group, else (N, C', H', W'); (N, 1, H, W) -> (N, 1, H', W').
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.groups, self.out_channels = conv.groups, conv.out_channels
        self.kernel, self.stride = _pair(conv.kernel_size), _pair(conv.stride)
        self.dilation = _pair(conv.dilation)
        self.same = _pads_itself(conv)
        self.padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
        self.weight = nn.Parameter(torch.empty(1, 1, *self.kernel, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Filter."""
        groups = 1 if x.shape[1] == 1 else self.groups
        x = x.unflatten(1, (groups, -1)).mean(2)
        if self.same:
            x = _same_pad(x, self.kernel, self.stride, self.dilation)
        padding = (0, 0) if self.same else self.padding
        weight = self.weight.expand(groups, 1, *self.kernel)
        x = F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)
        return x if groups == 1 else x.repeat_interleave(self.out_channels // groups, 1)


class _BoxTransposed(nn.Module):
    """A transposed convolution of constant weights and kernel = stride, cropped as `TransposedUpsample` is.

    Shapes: (N, C, h, w), (N, _, H, W) -> (N, 1, H, W).
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Upsample."""
        x = x.mean(1, keepdim=True).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return x[..., : like.shape[-2], : like.shape[-1]]


class _BoxPool(nn.Module):
    """Sum over the windows of a pooling, dilated or not, with its padding and ceil mode.

    Shapes: (N, C, H, W) -> (N, C, H', W').
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.mode = getattr(pool, "pad_mode", "constant")
        blur = hasattr(pool, "filt_size")
        self.kernel = _pair(pool.filt_size if blur else pool.kernel_size)
        self.stride = _pair(self.kernel if pool.stride is None else pool.stride)
        self.dilation = _pair(getattr(pool, "dilation", 1))
        self.padding = (pool.padding[2], pool.padding[0]) if blur else _pair(getattr(pool, "padding", 0))
        self.same, self.ceil = _pads_itself(pool), bool(getattr(pool, "ceil_mode", False))
        self.weight = nn.Parameter(torch.empty(1, 1, *self.kernel, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Sum."""
        if self.same:
            x = _same_pad(x, self.kernel, self.stride, self.dilation)
        else:
            pad: list[int] = []
            for size, k, s, d, p in zip(
                x.shape[-2:], self.kernel, self.stride, self.dilation, self.padding, strict=True
            ):
                pad = [p, p + self._more(size + 2 * p - d * (k - 1) - 1, s, size + p), *pad]
            x = F.pad(x, pad, mode=self.mode)
        channels = x.shape[1]
        weight = self.weight.expand(channels, 1, *self.kernel)
        return F.conv2d(x, weight, None, self.stride, (0, 0), self.dilation, channels)

    def _more(self, span: int, stride: int, end: int) -> int:
        """Padding that the last, incomplete window needs in ceil mode; one that starts behind the map is none."""
        if not self.ceil:
            return 0
        count = -(-span // stride) + 1
        if (count - 1) * stride >= end:
            count -= 1
        return max((count - 1) * stride - span, 0)
