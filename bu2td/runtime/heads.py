"""The head of a converted network: its pool, its classifier, and how both are replaced."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.errors import OptionError, first_line, nearest
from bu2td.nn import contain
from bu2td.ops import Role, converter_for, converter_for_type, meta_copy

#: What a global pool may be; "" is none.
POOLS = ("avg", "max", "avgmax", "catavgmax", "")
#: A map that is no size by chance, to tell what depends on the map.
_MAP = (4, 6)


class GlobalPool(nn.Module):
    """The mean over the map, its maximum, the mean of both, or one behind the other.

    Shapes: (N, C, H, W), or (N, H, W, C) with ``last``, -> (N, C, 1, 1), 2C for "catavgmax"; without the last two
    if ``flatten``.
    """

    def __init__(self, kind: str, flatten: bool, last: bool) -> None:
        super().__init__()
        self.pool_type, self.flatten, self.last = kind, flatten, last

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map."""
        pooled = pooled_as(self.pool_type, x.permute(0, 3, 1, 2) if self.last else x)
        return pooled.flatten(1) if self.flatten else pooled

    def extra_repr(self) -> str:
        """The kind of pool."""
        return f"{self.pool_type!r}"


def pooled_as(kind: str, x: Tensor) -> Tensor:
    """A map (N, C, H, W) pooled to one position, (N, C, 1, 1)."""
    parts: dict[str, Any] = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}
    found: list[Tensor] = [pool(x, 1) for name, pool in parts.items() if name in kind]
    if kind.startswith("cat"):
        return torch.cat(found, 1)
    return found[0] if len(found) == 1 else (found[0] + found[1]) * 0.5


@dataclass(frozen=True, eq=False)
class PoolSite:
    """Where the global pool of a head is: from the value that it reads to the one that it makes."""

    source: fx.Node
    exit: fx.Node


@dataclass(frozen=True, eq=False)
class HeadTemplate:
    """A head as it was converted, to be changed again and again.

    Attributes:
        head: on the meta device; never changed.
        classifier: name of its last layer.
        width: channels of the map that it reads.
    """

    head: fx.GraphModule
    classifier: str
    width: int

    @classmethod
    def of(cls, head: fx.GraphModule, width: int) -> HeadTemplate:
        """The template of a head."""
        twin: Any = meta_copy(head)
        return cls(twin, classifier_name(head), width)

    @property
    def layer(self) -> nn.Module:
        """The classifier."""
        return self.head.get_submodule(self.classifier)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every value for a map of four by six."""
        return _shapes(self.head, self.width, _MAP)

    def pool(self) -> PoolSite | None:
        """The global pool; None where the head has none that could be another."""
        shapes = self.shapes()
        for node in self.head.graph.nodes:
            if _role(self.head, node) is Role.GATE and _is_pooled(shapes[node.name]):
                return PoolSite(node.all_input_nodes[0], _exit(self.head, node))
        return None

    def kind(self) -> str | None:
        """What the global pool is, by what it computes; None where it is none of `POOLS`."""
        site = self.pool()
        if site is None:
            return None
        shape = (2, *self.shapes()[site.source.name][1:])
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        between = _between(self.head.graph, site)
        modules = {str(n.target): self.head.get_submodule(str(n.target)) for n in between if n.op == "call_module"}
        if len(shape) != 4 or any(list(module.parameters()) for module in modules.values()):
            return None
        graph = fx.Graph()
        copies = {site.source: graph.placeholder("x")}
        for node in between:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
        graph.output(copies[site.exit])
        found = fx.GraphModule(modules, graph)(x).flatten(1)
        for kind in POOLS[:-1]:
            expected = pooled_as(kind, x.permute(0, 3, 1, 2) if _is_last(shape) else x).flatten(1)
            if found.shape == expected.shape and bool(torch.allclose(found, expected, atol=1e-6)):
                return kind
        return None

    def with_pool(self, kind: str | None) -> fx.GraphModule:
        """A head, on the meta device, with another global pool; None leaves it as it is.

        Raises:
            OptionError: no such pool, or the head has none, or layers behind it need it.
        """
        head = copy.deepcopy(self.head)
        if kind is None or kind == self.kind():
            return head
        if kind not in POOLS:
            known = ", ".join(map(repr, POOLS))
            raise OptionError(f"global_pool={kind!r} must be one of {known}.{nearest(str(kind), POOLS)}")
        shapes, site = self.shapes(), HeadTemplate(head, self.classifier, self.width).pool()
        read = () if site is None else shapes[site.source.name]
        if site is None or not (_is_last(read) or read[2:] in (_MAP, (1, 1))):
            raise OptionError(
                f"global_pool={kind!r}: this head has no global pool over maps that could be another; "
                f"leave global_pool out, or convert a bottom-up network that is built with it"
            )
        if kind == "":
            _unpool(head, site, shapes)
        else:
            with head.graph.inserting_after(site.exit):
                head.add_submodule(
                    f"{kind}_pool", GlobalPool(kind, len(shapes[site.exit.name]) == 2, _is_last(read))
                )
                new = head.graph.call_module(f"{kind}_pool", (site.source,))
            site.exit.replace_all_uses_with(new)
        head.graph.eliminate_dead_code()
        head.recompile()
        return head

    def with_classifier(self, num_classes: int, kind: str | None) -> fx.GraphModule:
        """A head, on the meta device, with a new classifier for what its pool makes; 0 classes: none.

        Without a pool a linear classifier becomes a 1x1 convolution: logits for every position.

        Raises:
            OptionError: the classifier cannot be replaced, or does not fit the pool.
        """
        head, old = self.with_pool(kind), self.layer
        if not isinstance(old, nn.Linear | nn.Conv2d) or not self._ends_with_it():
            raise OptionError(
                f"the classifier {type(old).__name__} cannot be replaced; convert the bottom-up network with "
                f"{num_classes} classes instead"
            )
        _replace(head, self.classifier, nn.Identity())
        try:
            read = _shapes(head, self.width, _MAP)[_call_of(head, self.classifier)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise OptionError(
                f"global_pool={kind!r}: the layers between pool and classifier do not work behind it "
                f"({first_line(error)})"
            ) from error
        if num_classes == 0:
            return head
        _replace(head, self.classifier, _like(old, read, num_classes))
        return head

    def hidden(self, kind: str | None) -> int:
        """Channels of what the classifier reads behind a pool."""
        head, layer = self.with_pool(kind), self.layer
        node = next(n for n in head.graph.nodes if n.name == _call_of(head, self.classifier))
        if str(node.target) != self.classifier:  # it is inside
            return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]
        source, output = node.all_input_nodes[0], next(n for n in head.graph.nodes if n.op == "output")
        output.args = (source,)  # behind another pool the layer would not fit, nor what follows it
        head.graph.eliminate_dead_code()
        shape = _shapes(head, self.width, _MAP)[source.name]
        return shape[-1] if len(shape) == 2 or _is_last(shape) else shape[1]

    def _ends_with_it(self) -> bool:
        """Whether what the classifier makes are the logits, but for layers without weights."""
        nodes = list(self.head.graph.nodes)
        own = next(i for i, n in enumerate(nodes) if n.name == _call_of(self.head, self.classifier))
        behind = set(nodes[own:])
        for node in nodes[own + 1 :]:
            if not set(node.all_input_nodes) <= behind:
                return False
            if node.op == "call_module" and list(self.head.get_submodule(str(node.target)).parameters()):
                return False
        return True


def classifier_name(head: fx.GraphModule) -> str:
    """The layer of a head that emits the logits."""
    names: list[str] = []
    for target in (str(n.target) for n in head.graph.nodes if n.op == "call_module"):
        part = head.get_submodule(target)
        converter = converter_for_type(type(part))
        whole = converter is not None and converter.role == Role.HEAD  # its classifier is inside
        for name, module in part.named_modules(prefix=target) if whole else [(target, part)]:
            weight = getattr(module, "weight", None)  # a fused layer is none of torch's
            if isinstance(module, nn.Identity) or (isinstance(weight, Tensor) and weight.ndim > 1):
                names.append(name)
    return names[-1]


def put_on(head: fx.GraphModule, planned: fx.GraphModule, classifier: str, like: Tensor | None) -> None:
    """Let a live head compute as a planned one; all layers but the classifier stay the same objects.

    Args:
        head: is changed.
        planned: on the meta device.
        classifier: name of the layer that is new.
        like: a weight of the network, for device and type of new ones.

    Raises:
        OptionError: a layer that the plan needs is gone from the live head, with its weights.
    """
    for target in dict.fromkeys(str(n.target) for n in planned.graph.nodes if n.op == "call_module"):
        module = planned.get_submodule(target)
        inside = classifier == target or classifier.startswith(f"{target}.")
        if not inside and _has(head, target):
            continue
        name = classifier if inside and _has(head, target) else target
        fresh = copy.deepcopy(planned.get_submodule(name))
        if not inside and list(module.parameters()):
            raise OptionError(f"the head's {target} is gone, with its weights; convert the network again")
        if like is not None:
            fresh = fresh.to(like.dtype).to_empty(device=like.device)
        _reset(fresh)
        fresh.train(head.training)
        _replace(head, name, fresh)
    head.graph = copy.deepcopy(planned.graph)
    contain(head)


# --- the graph of a head ------------------------------------------------------------------------------


def _shapes(head: fx.GraphModule, width: int, size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    weight = next(head.parameters(), None)
    x = torch.empty(2, width, *size, device="meta", dtype=weight.dtype if weight is not None else None)
    shapes: dict[str, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n.name] = tuple(value.shape)
            return value

    recorder = Recorder(head)
    recorder.extra_traceback = False
    training = head.training
    with torch.no_grad():
        head.eval()
        try:
            recorder.run(x)
        finally:
            head.train(training)
    return shapes


def _role(head: fx.GraphModule, node: fx.Node) -> Role:
    module = head.get_submodule(str(node.target)) if node.op == "call_module" else None
    return converter_for(node, module).role


def _source(node: fx.Node) -> str:
    return node.all_input_nodes[0].name if node.all_input_nodes else ""


def _is_pooled(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 4 and shape[-2:] == (1, 1))


def _is_last(shape: tuple[int, ...]) -> bool:
    """Whether channels are the last dimension of a map."""
    return len(shape) == 4 and shape[1:3] == _MAP


def _exit(head: fx.GraphModule, gate: fx.Node) -> fx.Node:
    """Where the parts of a pool are one: its only part, or what follows until all have met."""
    [source] = gate.all_input_nodes[:1]
    parts = [node for node in source.users if _role(head, node) is Role.GATE]
    last = parts[-1]
    if len(parts) == 1:
        return last
    while len(last.users) == 1 and _role(head, next(iter(last.users))) in (Role.CONCAT, Role.ADD, Role.MUL):
        last = next(iter(last.users))
    return last


def _between(graph: fx.Graph, site: PoolSite) -> list[fx.Node]:
    order = list(graph.nodes)
    return order[order.index(site.source) + 1 : order.index(site.exit) + 1]


def _unpool(head: fx.GraphModule, site: PoolSite, shapes: dict[str, tuple[int, ...]]) -> None:
    """Take the pool out, and the flattenings behind it."""
    behind = list(head.graph.nodes)
    behind = behind[behind.index(site.exit) + 1 :]
    for node in behind:
        flattens = node.all_input_nodes and len(shapes.get(node.name, ())) < len(shapes.get(_source(node), ()))
        if flattens and _role(head, node) is Role.PASS:
            node.replace_all_uses_with(node.all_input_nodes[0])
    site.exit.replace_all_uses_with(site.source)


def _call_of(head: fx.GraphModule, name: str) -> str:
    """The node that calls a module, or one that holds it."""
    calls = (n for n in head.graph.nodes if n.op == "call_module")
    return str(next(n.name for n in calls if name == n.target or name.startswith(f"{n.target}.")))


def _like(old: nn.Linear | nn.Conv2d, read: tuple[int, ...], num_classes: int) -> nn.Module:
    """A classifier of the kind of an old one for what it reads; over a map, a linear one is a 1x1 convolution."""
    bias = old.bias is not None
    with torch.device("meta"):
        if isinstance(old, nn.Conv2d):
            kernel, padding = old.kernel_size, old.padding
            return nn.Conv2d(read[1], num_classes, kernel, padding=padding, bias=bias)  # type: ignore[arg-type]
        if len(read) == 4 and not _is_last(read):
            return nn.Conv2d(read[1], num_classes, 1, bias=bias)
        return nn.Linear(read[-1], num_classes, bias=bias)


def _replace(head: fx.GraphModule, target: str, module: nn.Module) -> None:
    if not _has(head, target):
        head.add_submodule(target, module)
        return
    parent, _, name = target.rpartition(".")
    setattr(head.get_submodule(parent), name, module)


def _has(head: nn.Module, target: str) -> bool:
    try:
        operator.attrgetter(target)(head)
    except AttributeError:
        return False
    return True


def _reset(module: nn.Module) -> None:
    for part in module.modules():
        reset: Any = getattr(part, "reset_parameters", None)
        if callable(reset) and next(part.parameters(recurse=False), None) is not None:
            reset()
