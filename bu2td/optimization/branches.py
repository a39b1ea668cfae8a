"""Parallel linear branches folded into one convolution, for inference.

A sum of branches that read one map is one convolution, if every branch is linear and reads each pixel where the
others do: a convolution, a norm with fixed statistics or the map itself, and what is multiplied and added per
channel in front of them and behind. Kernels are laid onto each other around the pixel that they are centred at; a
dilated one leaves gaps. Borders stay as they are: a position outside of the image is worth the same (zero, or the
pixel that the padding mode puts there) to every kernel that reaches it, and a shift in front of a convolution is
folded in only if that does not pad. Upsampling by repetition or interpolation lets pointwise branches pass: its
weights sum to 1.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.nn import ConvUnit, Upsample, is_bare, is_hooked
from bu2td.ops import Role, converter_for
from bu2td.optimization.cost_model import Chooser, Form
from bu2td.optimization.fuse import SUM_METHODS, SUMS, own_act, scale_and_shift
from bu2td.optimization.kernels.lowres import Pair, same_padding
from bu2td.runtime import TopDownNetwork

RULE = "branches"


def fold_branches(network: TopDownNetwork, shapes: dict[str, tuple[int, ...]], choose: Chooser) -> None:
    """Fold the branches of every level, up-block and head where a chooser chooses, in place.

    Args:
        network: in eval mode; it is changed.
        shapes: what `bu2td.optimization.simplify.Shapes` found for one image.
        choose: decides; asked with both forms only where folding takes more multiplications.
    """
    with torch.no_grad():
        for name, part in list(network.named_children()):
            if isinstance(part, fx.GraphModule):
                _Folder(part, name, shapes, choose).fold()


# --- what a branch computes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """conv(scale x + shift), or scale x + shift where there is no convolution; None stands for 1 and 0.

    Attributes:
        source: the node that it reads.
        up: the upsampling that it passes, or that stands in front of it.
        weight, bias: of the convolution, in float64.
        conv: whose padding, stride, dilation and groups count.
    """

    source: fx.Node
    up: fx.Node | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    conv: nn.Conv2d | None = None

    @property
    def pointwise(self) -> bool:
        """Whether every position is made of that position alone."""
        return self.conv is None or (
            self.conv.kernel_size == (1, 1) and _padding(self.conv) == (0, 0) and self.conv.stride == (1, 1)
        )

    def then(self, module: nn.Module, node: fx.Node) -> Branch | None:
        """This branch with one more module, which a node calls; None if that is no branch."""
        if isinstance(module, Upsample):
            return replace(self, up=node) if self.pointwise and self.up is None else None
        if isinstance(module, nn.BatchNorm2d):
            return self._scaled(*(_exact(value) for value in scale_and_shift(module)))
        if isinstance(module, nn.Conv2d):
            return self._convolved(module)
        return self

    def _scaled(self, scale: Tensor, shift: Tensor) -> Branch:
        if self.weight is None:
            old = shift if self.shift is None else self.shift * scale + shift
            return replace(self, scale=scale if self.scale is None else self.scale * scale, shift=old)
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=self.weight * scale[:, None, None, None], bias=bias)

    def _convolved(self, conv: nn.Conv2d) -> Branch | None:
        weight = _exact(conv.weight)
        bias = None if conv.bias is None else _exact(conv.bias)
        if conv.groups == conv.in_channels == conv.out_channels and Branch(self.source, conv=conv).pointwise:
            return self._scaled(weight.flatten(), torch.zeros_like(weight.flatten()) if bias is None else bias)
        if self.conv is not None or (self.shift is not None and _padding(conv) != (0, 0)):
            return None
        if self.shift is not None:
            moved = (weight.sum((2, 3)) * _per_output(self.shift, conv)).sum(1)
            bias = moved if bias is None else bias + moved
        if self.scale is not None:
            weight = weight * _per_output(self.scale, conv)[:, :, None, None]
        return Branch(self.source, self.up, weight=weight, bias=bias, conv=conv)


def _exact(values: Tensor) -> Tensor:
    return values.detach().to(_exact_on(values), torch.float64)


def _exact_on(values: Tensor) -> str:
    """Where sums in float64 are made: not every device has it; and a network without values gets none."""
    return "meta" if values.is_meta else "cpu"


def _per_output(values: Tensor, conv: nn.Conv2d) -> Tensor:
    """Values of the input channels (C_in,) where the kernels of the outputs read them: (C_out, C_in / groups)."""
    return values.reshape(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)


def _padding(conv: nn.Conv2d) -> Pair:
    padding = same_padding(conv)
    assert padding is not None  # `_Folder._modules` leaves others alone
    return padding


def _excess(conv: nn.Conv2d) -> Pair:
    """By how much a convolution enlarges its map along each axis, before its stride."""
    axes = zip(_padding(conv), conv.dilation, conv.kernel_size, strict=True)
    first, second = (2 * p - d * (k - 1) for p, d, k in axes)
    return first, second


# --- branches that are one convolution ----------------------------------------------------------------


@dataclass
class Bundle:
    """Branches of one sum that are one convolution; ``mode`` is None as long as none of them pads."""

    first: Branch
    mode: str | None = None
    branches: list[Branch] = field(default_factory=list)
    operands: list[fx.Node] = field(default_factory=list)

    def takes(self, branch: Branch) -> bool:
        """Whether a branch reads the same map in the same way."""
        ours, own = self.first.conv, branch.conv
        assert ours is not None
        if branch.source is not self.first.source or _grid(branch) != _grid(self.first):
            return False
        if own is None:
            return ours.in_channels == ours.out_channels and ours.stride == (1, 1) and _excess(ours) == (0, 0)
        alike = all(getattr(ours, name) == getattr(own, name) for name in ("stride", "groups", "out_channels"))
        return (
            alike and _excess(ours) == _excess(own) and (None in (self.mode, _mode(own)) or self.mode == _mode(own))
        )

    def add(self, branch: Branch, operand: fx.Node) -> None:
        """Take in a branch, and the node that made it."""
        self.mode = self.mode or (None if branch.conv is None else _mode(branch.conv))
        self.branches.append(branch)
        self.operands.append(operand)

    def forms(self, size: Sequence[int], conv: nn.Conv2d) -> tuple[Form, Form]:
        """What the branches cost for a result of (H, W), and what their sum does."""
        places, weights = math.prod(size), [b.weight.numel() for b in self.branches if b.weight is not None]
        moved = 3 * (len(self.branches) - 1) * places * conv.out_channels
        kept = conv.weight.numel()
        return Form(sum(weights) * places, moved, sum(weights)), Form(kept * places, 0, kept)

    def conv(self) -> nn.Conv2d:
        """The one convolution, in the dtype and on the device of the first one."""
        like = self.first.conv
        assert like is not None
        convs = [b.conv for b in self.branches if b.conv is not None]
        rows, columns = (_Axis.over(convs, axis, len(convs) < len(self.branches)) for axis in (0, 1))
        exact: dict[str, Any] = {"dtype": torch.float64, "device": _exact_on(like.weight)}
        weight = torch.zeros((*like.weight.shape[:2], rows.taps, columns.taps), **exact)
        bias = torch.zeros(like.out_channels, **exact)
        for branch in self.branches:
            if branch.conv is None:
                outputs = torch.arange(like.out_channels)
                scale: Any = 1.0 if branch.scale is None else branch.scale
                weight[outputs, outputs % weight.shape[1], rows.centre, columns.centre] += scale
            else:
                assert branch.weight is not None
                weight[:, :, rows.where(branch.conv), columns.where(branch.conv)] += branch.weight
            shift = branch.shift if branch.conv is None else branch.bias
            bias += 0 if shift is None else shift
        mode: Any = self.mode or "zeros"
        strides: Any = like.stride
        made = nn.Conv2d(
            like.in_channels, like.out_channels, (rows.taps, columns.taps), strides,
            (rows.padding, columns.padding), (rows.dilation, columns.dilation), like.groups,
            padding_mode=mode, device="meta",
        )  # fmt: skip
        made.weight = nn.Parameter(weight.to(like.weight))
        made.bias = nn.Parameter(bias.to(like.weight))
        return made.eval()


def _mode(conv: nn.Conv2d) -> str | None:
    return None if _padding(conv) == (0, 0) else conv.padding_mode


def _grid(branch: Branch) -> Any:
    """What tells how a branch's map is upsampled."""
    if branch.up is None:
        return None
    part: Any = branch.up.graph.owning_module
    return part.get_submodule(str(branch.up.target)).mode, branch.up.args[1]


@dataclass(frozen=True)
class _Axis:
    """An axis of the kernel that holds several: its taps, their distance, and how far it looks back."""

    axis: int
    taps: int
    dilation: int
    padding: int

    @staticmethod
    def over(convs: Sequence[nn.Conv2d], axis: int, centred: bool) -> _Axis:
        """The least axis over those of convolutions, and over the pixel itself where it is ``centred``."""
        offsets = {
            conv.dilation[axis] * tap - _padding(conv)[axis]
            for conv in convs
            for tap in range(conv.kernel_size[axis])
        }
        offsets |= {0} if centred else set()
        start = min(offsets)
        step = math.gcd(*(offset - start for offset in offsets)) or 1
        return _Axis(axis, (max(offsets) - start) // step + 1, step, -start)

    @property
    def centre(self) -> int:
        """The tap that reads the pixel itself."""
        return self.padding // self.dilation

    def where(self, conv: nn.Conv2d) -> slice:
        """The taps of a convolution."""
        first = (self.padding - _padding(conv)[self.axis]) // self.dilation
        step = max(conv.dilation[self.axis] // self.dilation, 1)
        return slice(first, first + step * (conv.kernel_size[self.axis] - 1) + 1, step)


# --- graphs -------------------------------------------------------------------------------------------


class _Folder:
    """Folds the sums of one graph."""

    def __init__(
        self, part: fx.GraphModule, path: str, shapes: dict[str, tuple[int, ...]], choose: Chooser
    ) -> None:
        self.part, self.graph, self.path, self.shapes, self.choose = part, part.graph, path, shapes, choose

    def fold(self) -> None:
        """Fold every sum that has branches."""
        for root in list(self.graph.nodes):
            if self._is_sum(root) and not self._is_inner(root):
                self._fold_sum(root)
        self.graph.lint()
        self.part.delete_all_unused_submodules()
        self.part.recompile()

    def _fold_sum(self, root: fx.Node) -> None:
        seen: list[fx.Node] = []
        operands = self._operands(root, seen)
        branches = [self._branch(operand, seen) for operand in operands]
        bundles: list[Bundle] = []
        for diagonal in (False, True):  # what has no kernel of its own goes to a convolution
            for operand, branch in zip(operands, branches, strict=True):
                if (branch.conv is None) != diagonal or self._is_overwritten(branch):
                    continue
                bundle = next((b for b in bundles if b.takes(branch)), None)
                if bundle is None and not diagonal:
                    bundles.append(bundle := Bundle(branch))
                if bundle is not None:
                    bundle.add(branch, operand)
        folded = [bundle for bundle in bundles if len(bundle.branches) > 1]
        made = [(bundle, bundle.conv()) for bundle in folded]
        made = [(bundle, conv) for bundle, conv in made if self._wanted(root, bundle, conv)]
        if made:
            self._replace(root, operands, made, seen)

    def _wanted(self, root: fx.Node, bundle: Bundle, conv: nn.Conv2d) -> bool:
        site = f"{self.path}.{root.name}"
        before, after = bundle.forms(self.shapes[site][-2:], conv)
        return self.choose(RULE, site) if after.macs <= before.macs else self.choose(RULE, site, before, after)

    def _replace(
        self, root: fx.Node, operands: list[fx.Node], made: list[tuple[Bundle, nn.Conv2d]], seen: list[fx.Node]
    ) -> None:
        """Put convolutions, and the sum of what is left, in the place of a sum."""
        left = list(operands)
        value: fx.Node | None = None
        with self.graph.inserting_before(root):
            for bundle, conv in made:
                for operand in bundle.operands:
                    left.remove(operand)
                new = self._call(root, bundle, conv)
                value = new if value is None else self.graph.call_function(operator.add, (value, new))
            for operand in left:
                value = self.graph.call_function(operator.add, (value, operand))
        assert value is not None
        root.replace_all_uses_with(value)
        for node in sorted({*seen, root}, reverse=True):
            if not node.users:
                self.graph.erase_node(node)

    def _call(self, root: fx.Node, bundle: Bundle, conv: nn.Conv2d) -> fx.Node:
        name = f"{root.name}_branches"
        while hasattr(self.part, name):
            name += "_"
        self.part.add_module(name, conv)
        ups = [b.up for b in bundle.branches if b.up is not None]
        if not ups:
            return self.graph.call_module(name, (bundle.first.source,))
        up = ups[0]
        if conv.kernel_size == (1, 1):
            low = self.graph.call_module(name, (bundle.first.source,))
            return self.graph.call_module(str(up.target), (low, up.args[1]))
        high = self.graph.call_module(str(up.target), (bundle.first.source, up.args[1]))
        return self.graph.call_module(name, (high,))

    # -- sums --------------------------------------------------------------------------------------

    def _is_sum(self, node: fx.Node) -> bool:
        """Whether a node adds two values, or zero to one, and overwrites nothing that others read."""
        function = node.op == "call_function" and node.target in SUMS
        method = node.op == "call_method" and node.target in SUM_METHODS
        if not (function or method) or node.kwargs or len(node.args) != 2:
            return False
        if not all(isinstance(arg, fx.Node) or (isinstance(arg, int | float) and arg == 0) for arg in node.args):
            return False
        first = node.args[0]
        overwrites = node.target in (operator.iadd, "add_")
        return not overwrites or (isinstance(first, fx.Node) and len(first.users) == 1)

    def _is_inner(self, node: fx.Node) -> bool:
        """Whether a sum is part of another one alone."""
        return len(node.users) == 1 and self._is_sum(next(iter(node.users)))

    def _operands(self, node: fx.Node, seen: list[fx.Node]) -> list[fx.Node]:
        found: list[fx.Node] = []
        for arg in node.args:
            if isinstance(arg, fx.Node) and self._is_sum(arg) and self._is_inner(arg):
                seen.append(arg)
                found += self._operands(arg, seen)
            elif isinstance(arg, fx.Node):
                found.append(arg)
        return found

    # -- branches ----------------------------------------------------------------------------------

    def _branch(self, operand: fx.Node, seen: list[fx.Node]) -> Branch:
        """An operand as a branch of the node at which linear calls that nobody else reads begin."""
        steps: list[tuple[fx.Node, list[nn.Module]]] = []
        node = operand
        while modules := self._modules(node):
            shared = len(node.users) > 1
            if shared and not isinstance(modules[0], Upsample):
                break
            steps.append((node, modules))
            node = node.all_input_nodes[0]
            if shared:
                break
        branch = Branch(node)
        for node, modules in reversed(steps):
            for module in modules:
                longer = branch.then(module, node)
                if longer is None and module is not modules[0]:
                    return Branch(operand)
                branch = longer or self._begun(node.all_input_nodes[0], module, node)
        seen += [node for node, _ in steps]
        return branch

    def _begun(self, source: fx.Node, module: nn.Module, node: fx.Node) -> Branch:
        """The branch that begins with a module."""
        made = Branch(source)
        before = self._modules(source)
        if before and isinstance(before[0], Upsample) and not isinstance(module, Upsample):
            made = Branch(source.all_input_nodes[0], source)
        begun = made.then(module, node)
        assert begun is not None
        return begun

    def _modules(self, node: fx.Node) -> list[nn.Module]:
        """The modules that a node calls, if all are linear for every channel or are plain convolutions."""
        if node.op != "call_module" or node.kwargs:
            return []
        module: Any = self.part.get_submodule(str(node.target))
        if isinstance(module, Upsample):
            return [] if is_hooked(module) else [module]
        if len(node.args) != 1 or is_hooked(module):
            return []
        parts = [part for _, part in module.in_order()] if isinstance(module, ConvUnit) else [module]
        return parts if all(self._is_linear(node, part) for part in parts) else []

    def _is_linear(self, node: fx.Node, module: nn.Module) -> bool:
        if is_hooked(module):
            return False
        if isinstance(module, nn.BatchNorm2d):
            return own_act(module) == ("none", ()) and module.running_mean is not None
        if isinstance(module, nn.Conv2d):
            return is_bare(module) and same_padding(module) is not None
        return type(module) is nn.Identity or converter_for(node, module).role == Role.DROPOUT

    def _is_overwritten(self, branch: Branch) -> bool:
        """Whether somebody writes into the map that a branch reads, so that it matters when it is read."""
        nodes: Iterable[fx.Node] = (branch.source, *((branch.up,) if branch.up is not None else ()))
        return any(self._overwrites(user) for node in nodes for user in node.users)

    def _overwrites(self, user: fx.Node) -> bool:
        if user.op == "call_module":
            return bool(getattr(self.part.get_submodule(str(user.target)), "inplace", False))
        name = str(getattr(user.target, "__name__", user.target))
        return user.target is operator.iadd or (name.endswith("_") and not name.endswith("__"))
