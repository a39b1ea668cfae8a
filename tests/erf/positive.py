"""A positive copy of a network: the support of its input gradient is the theoretical receptive field.

A real network's gradient can vanish inside its field: paths cancel, activations are flat, a maximum picks one
pixel. The positive copy has the same wiring, and no path of it can vanish or cancel:

==============================  ======================================================================
in the network                  in the copy
==============================  ======================================================================
convolution, linear layer       all weights are one positive constant, no bias; kernel, stride, padding,
                                dilation and groups stay
max pooling                     average pooling over the same windows, in the pyramid too
norm, activation, dropout       identity (statistics over positions are a gate: they see all of the map)
multiplication, sum             the sum of those operands that are maps. A gate that is pooled over the
                                map (squeeze-and-excite, global response norm), a layer scale and a
                                constant are left out, which cuts the gate
map made from pooled values     detached, which cuts it
softmax, clamp, power, ...      identity
maximum, norm over channels     mean over channels
attention inside blocks (halo)  the sum over a block and the halo around it
everything else that moves      stays: concat, split, views, padding, resampling, pyramid
values
==============================  ======================================================================

With constant weights a dense convolution is the mean over its input channels, one box filter, and a broadcast to
its output channels. It is computed so, and a map whose channels are equal stays one channel ("thin"), whichever
dimension counts them, until an operation tells channels apart; thin maps that are concatenated, and whose channels
all readers mix, are summed. That makes canvases of thousands of pixels cheap. All is float64, where a path through
hundreds of windows is still far from underflow. The constant is written into the operations, so that the copy has
no weights of its own.

Other attention (matrix products of positions, softmax over positions) reaches the whole map by design and is
refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.erf.gradient import centre_fields, input_gradients
from bu2td.erf.subject import Subject, subject
from bu2td.errors import UnsupportedOperationError
from bu2td.graph import GraphView, source_line
from bu2td.ir import Capture, Dims, is_tensor
from bu2td.nn import Pyramid, TransposedUpsample, Upsample
from bu2td.ops import Role
from bu2td.ops.surgery import drop_hooks
from erf.boxes import BlurredPyramid, BoxConv, BoxHalo, BoxPool, BoxTransposed, detached, mixed, passed, summed

__all__ = ["compare_support", "positive_copy"]

#: Roles of operations that become the identity.
_IDENTITIES = (Role.NORM, Role.ACT, Role.NORM_ACT, Role.DROPOUT)

#: Views among the operations of role "pass"; the others act on every value alone.
_VIEWS = (
    *("flatten", "unflatten", "view", "view_as", "reshape", "reshape_as"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "repeat", "getitem"),
)

_POOLS = nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d

#: Reductions that are not linear.
_STATISTICS = ("amax", "std", "var", "norm")

#: Ways to resample with positive weights.
_MODES = ("nearest", "nearest-exact", "bilinear", "area")

#: Pyramid reducers whose taps are not positive weights, by one with the same taps that are.
_REDUCERS = {"max": "average"}


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
        A graph module on the CPU, which maps images (N, C, H, W) to a tuple of the layers' outputs; give it images
        in float64. Its nodes have the names that they have in the network.

    Raises:
        Bu2tdError: as `bu2td.analyze`; `UnsupportedOperationError` where a layer depends on attention or on an
            operation that this module has no rule for; it names them all.
    """
    looked_at = subject(model, example_inputs)
    return positive_graph(looked_at, list(looked_at.nodes_of(layers).values()))


def positive_graph(looked_at: Subject, outputs: Sequence[str]) -> fx.GraphModule:
    """The positive copy of a `Subject`; see `positive_copy`."""
    return _Positive(looked_at).build(outputs)


def compare_support(model: Any, side: int, *, example_inputs: Tensor | None = None) -> list[dict[str, Any]]:
    """Compare the theoretical field of the centre unit of every level with the positive copy's gradient.

    Args:
        model: as for `positive_copy`.
        side: of the square canvas; fields are compared pixel by pixel with what of them lies on it.
        example_inputs: an image batch, which fixes channels as in `bu2td.analyze`.

    Returns:
        A dict per level, coarse to fine: name, theory and support, each (top, left, bottom, right) in pixels,
        ends included; whole: whether the canvas holds the whole field; cause: "", or the operation that a
        positive copy has no rule for, behind which ``support`` is None. ``theory`` is None behind an operation
        without an interval rule.
    """
    looked_at = subject(model, example_inputs)
    channels = looked_at.image_shape[1]
    fields = centre_fields(looked_at, looked_at.levels, (side, side))
    rows = []
    for name, node in looked_at.levels.items():
        field = fields.get(name)
        edges, cause = None, ""
        if field is not None:
            edges = (field.rows.start, field.columns.start, field.rows.stop - 1, field.columns.stop - 1)
        try:
            copied = positive_graph(looked_at, [node])
        except UnsupportedOperationError as error:
            found, cause = None, str(error).splitlines()[1].strip()
        else:
            image = torch.ones(1, channels, side, side, dtype=torch.float64)
            at = input_gradients(copied, {node: looked_at.axes(node)}, iter([image]))[node].nonzero()
            found = (*at.min(0).values.tolist(), *at.max(0).values.tolist())
        whole = bool(field and not field.clipped)
        rows.append({"name": name, "theory": edges, "support": found, "whole": whole, "cause": cause})
    return rows


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
        self.mixing: dict[fx.Node, bool] = {}

    def build(self, outputs: Sequence[str]) -> fx.GraphModule:
        needed = self._ancestors(outputs)
        self.mixing = {self.view.nodes[name]: False for name in outputs}
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
        with torch.no_grad():  # of modules that stay as they are, all of whose output is cut off
            for tensor in [*network.parameters(), *network.buffers()]:
                tensor.fill_(1 if tensor.is_floating_point() else 0)
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
            return self._call(node, detached, made)
        module = self.view.module(node.name)
        role = self.view.role(node.name)
        thin = maps[0].name in self.thin
        if isinstance(module, Pyramid):
            return self._pyramid(node, module)
        if isinstance(module, TransposedUpsample):
            self.thin.add(node.name)
            return self._module(node, BoxTransposed(module.stride[0]), *node.args)
        if role in _IDENTITIES:
            return self._passed(node, maps[0])
        if role == Role.CONV:
            if thin or self.view.module(node.name).groups == 1:
                self.thin.add(node.name)
            return self._module(node, BoxConv(module), maps[0])
        if role in (Role.ADD, Role.MUL):
            return self._sum(node, maps)
        if role == Role.POOL:
            return self._pool(node, module)
        if role == Role.LINEAR:
            return self._linear(node, module)
        if role == Role.PASS:
            return self._pass(node, module)
        if role == Role.GATE:
            return self._reduction(node)
        if type(module).__name__ == "HaloAttn":
            self.thin.add(node.name)
            return self._module(node, BoxHalo(module), maps[0])
        if isinstance(module, Upsample) or (role == Role.RESAMPLE and _mode(node, module) in _MODES):
            return self._same(node, thin)
        if role == Role.CONCAT and self._joins_channels(node, maps) and self._is_mixed(node):
            self.thin.add(node.name)
            return self._call(node, summed, [self.env[source] for source in maps], None)
        if role == Role.PAD:
            return self._same(node, thin and self._channels(node) == self._channels(maps[0]))
        if role in (Role.CONCAT, Role.SPLIT):
            return self._same(node)
        return self._refuse(node)

    def _channels(self, node: fx.Node) -> list[int]:
        return [d.size for d in self.dims[node.name] if d.kind == "channel"]

    def _joins_channels(self, node: fx.Node, maps: list[fx.Node]) -> bool:
        """Whether a concatenation of thin maps is one of their channels."""
        thin = len(maps) == len(node.all_input_nodes) and all(source.name in self.thin for source in maps)
        return thin and self._channels(node) == [sum(n for source in maps for n in self._channels(source))]

    def _is_mixed(self, node: fx.Node) -> bool:
        """Whether all channels of a value are mixed wherever it is read, so that their sum stands for them."""
        if node not in self.mixing:
            self.mixing[node] = False  # until all readers are known
            self.mixing[node] = all(self._mixes(reader) for reader in node.users)
        return self.mixing[node]

    def _mixes(self, reader: fx.Node) -> bool:
        if reader.op == "output" or not _is_map(self.dims.get(reader.name)):
            return True  # a gate, which is cut off
        module, role = self.view.module(reader.name), self.view.role(reader.name)
        if role == Role.CONV:
            return module.groups == 1 or self._is_mixed(reader)
        if role == Role.LINEAR or isinstance(module, TransposedUpsample):
            return True
        per_channel = role in (*_IDENTITIES, Role.ADD, Role.MUL) or isinstance(module, _POOLS | Upsample)
        return (per_channel or (role == Role.CONCAT and len(self._channels(reader)) == 1)) and self._is_mixed(
            reader
        )

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
        sizes = [d.size if d.kind == "channel" else -1 for d in self.dims[source.name]]
        return self.graph.call_function(Tensor.expand, (self.env[source], sizes))

    def _passed(self, node: fx.Node, source: fx.Node) -> fx.Node:
        if source.name in self.thin:
            self.thin.add(node.name)
        return self._call(node, passed, self.env[source])

    def _sum(self, node: fx.Node, maps: list[fx.Node]) -> fx.Node:
        if all(source.name in self.thin for source in maps):
            self.thin.add(node.name)
            return self._call(node, summed, [self.env[source] for source in maps], None)
        sizes = [d.size if d.kind == "channel" else -1 for d in self.dims[node.name]]
        return self._call(node, summed, [self._full(source) for source in maps], sizes)

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
        what = f"{node.target} ({type(module).__name__})" if module is not None else _name(node)
        self.refused.append(f"{what} at {source_line(node)}")
        return self.graph.node_copy(node, self._full)

    def _pyramid(self, node: fx.Node, pyramid: Pyramid) -> fx.Node:
        made = BlurredPyramid if pyramid.reducer == "max_blur" else Pyramid
        reducer = _REDUCERS.get(pyramid.reducer, pyramid.reducer)
        return self._module(node, made(pyramid.reductions, reducer, pyramid.sigma), *node.args)

    def _pool(self, node: fx.Node, module: nn.Module | None) -> fx.Node:
        if module is None or isinstance(module, nn.PixelUnshuffle) or type(module).__name__ == "SpaceToDepth":
            return self._same(node)
        source: Any = node.args[0]
        if isinstance(module, _POOLS) or type(module).__name__ == "BlurPool2d":
            if source.name in self.thin:
                self.thin.add(node.name)
            return self._module(node, BoxPool(module), source)
        kernel, stride = self.view.kernel(node.name), self.view.stride(node.name)
        if kernel != stride:
            return self._refuse(node)
        self.thin.add(node.name)
        return self._module(node, BoxConv(nn.Conv2d(1, 1, kernel, stride, device="meta")), source)

    def _linear(self, node: fx.Node, module: Any) -> fx.Node:
        source: Any = node.args[0]
        if self.dims[source.name][-1].kind != "channel":
            return self._refuse(node)
        self.thin.add(node.name)
        return self._call(node, mixed, self.env[source])

    def _pass(self, node: fx.Node, module: Any) -> fx.Node:
        source: Any = node.args[0]
        target = _name(node)
        if type(module).__name__ == "Permute" or target in ("permute", "transpose", "swapaxes"):
            return self._same(node, source.name in self.thin)
        if isinstance(module, nn.Flatten | nn.Unflatten) or target in _VIEWS:
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


def _is_map(value: Dims) -> bool:
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
