"""Rewrites of a top-down network for inference: norms folded, convolutions fused with sums and activations.

They follow `bu2td.optimization.simplify`. The result has other parameters than the network that trains: every
convolution holds what it computes with.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.nn import ConvUnit, Merge, Upsample
from bu2td.ops import Role, converter_for, converter_for_type
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.kernels import (
    FusedConv2d,
    FusedMerge,
    FusedNorm,
    SplitMerge,
    UpsampledConv2d,
    WinogradConv2d,
)
from bu2td.optimization.kernels.fused import activation_of
from bu2td.optimization.kernels.lowres import Pair, same_padding, summed_kernel
from bu2td.optimization.places import Place
from bu2td.runtime import TopDownNetwork

SUMS = (operator.add, operator.iadd, torch.add)
SUM_METHODS = ("add", "add_")


@dataclass
class ConvDraft:
    """A convolution on its way to a `FusedConv2d`."""

    weight: Tensor
    bias: Tensor | None
    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    act: str = "none"
    numbers: tuple[float, ...] = ()

    @staticmethod
    def of(conv: Any) -> ConvDraft | None:
        """A draft of a convolution of exactly PyTorch's kind, with zero padding; None for any other."""
        if type(conv) not in (nn.Conv2d, UpsampledConv2d, WinogradConv2d) or conv.padding_mode != "zeros":
            return None
        padding = same_padding(conv)
        if padding is None:
            return None
        bias = None if conv.bias is None else conv.bias.detach()
        return ConvDraft(conv.weight.detach(), bias, padding, conv.stride, conv.dilation, conv.groups)

    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Fold a batch norm in eval mode: its scale into the kernel, its shift into the bias."""
        scale, shift = scale_and_shift(norm)
        self.weight = self.weight * scale[:, None, None, None]
        self.bias = shift if self.bias is None else self.bias * scale + shift

    def build(self, form: str = "direct", conv: Any = None, reuse: bool = False) -> FusedConv2d:
        """The fused convolution; for the form "low", ``conv`` is the one that reads at low resolution."""
        weight, factor = self.weight, (1, 1)
        if form == "low":
            spans = [2 * p for p in self.padding]
            factor = conv.factor
            size = (spans[0] + factor[0], spans[1] + factor[1])
            weight = summed_kernel(weight, conv.sums, size, self.groups)
        if form != "winograd":
            weight = weight.clone(memory_format=torch.channels_last)
        return FusedConv2d(
            weight, self.bias, padding=self.padding, stride=self.stride, dilation=self.dilation,
            groups=self.groups, act=self.act, numbers=self.numbers, form=form, factor=factor, reuse=reuse,
        )  # fmt: skip


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as scale x + shift, each (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def fuse(network: TopDownNetwork, shapes: dict[str, tuple[int, ...]], choose: Chooser) -> None:
    """Make the rewrites of inference that a chooser chooses, in place.

    Args:
        network: in eval mode, as `bu2td.optimization.simplify.simplify` leaves it; it is changed.
        shapes: what `bu2td.optimization.simplify.Shapes` found for one image.
        choose: decides.
    """
    with torch.no_grad():
        for name, part in list(network.named_children()):
            if isinstance(part, fx.GraphModule):
                _GraphFuser(part, name, shapes, choose).fuse()
            elif _is_split_by_norm(part) and choose("merge", name):
                network.set_submodule(name, _fused_pre_merge(part))
            elif isinstance(part, ConvUnit | SplitMerge):
                node = next(n for n in network.graph.nodes if n.op == "call_module" and n.target == name)
                _fuse_unit(network, name, part, shapes[node.name], choose)
    network.recompile()


# --- conv units of the top graph ----------------------------------------------------------------------


def _fuse_unit(network: nn.Module, name: str, unit: Any, out: tuple[int, ...], choose: Chooser) -> None:
    draft = ConvDraft.of(unit.conv)
    if draft is None or not choose("fuse", name):
        return
    names = [part_name for part_name, _ in unit.in_order()]
    after = unit.in_order()[names.index("conv") + 1 :]
    gone = []
    for part_name, part in after:
        if not _absorb(draft, part, f"{name}.{part_name}", choose):
            break
        gone.append(part_name)
    whole = len(gone) == len(after)
    if isinstance(unit, SplitMerge):
        if whole:
            network.set_submodule(name, fused_merge(draft, unit, name, out, choose))
        return
    for part_name in gone:
        delattr(unit, part_name)
    unit.conv = draft.build(_form(draft, f"{name}.conv", out, choose))


def _is_split_by_norm(merge: nn.Module) -> bool:
    """Whether a merge has a norm and activation in front of its convolution that work on every channel alone."""
    if not isinstance(merge, Merge) or merge.join == "add" or not merge.preactivation or len(merge.beside()) < 2:
        return False
    parts: Any = merge
    plain = type(parts.norm) is nn.BatchNorm2d and parts.norm.running_mean is not None
    draft = ConvDraft.of(parts.conv)
    return plain and activation_of(parts.act) is not None and draft is not None and draft.groups == 1


def _fused_pre_merge(merge: Any) -> FusedMerge:
    act, numbers = activation_of(merge.act) or ("none", ())
    halves = zip(*(values.chunk(2) for values in scale_and_shift(merge.norm)), strict=True)
    norm_x, norm_lateral = (FusedNorm(scale, shift, act, numbers) for scale, shift in halves)
    convs: list[FusedConv2d] = []
    for weight in merge.conv.weight.detach().chunk(2, dim=1):
        draft = ConvDraft.of(merge.conv)
        assert draft is not None
        draft.weight, draft.bias = weight, None if convs else draft.bias
        convs.append(draft.build(reuse=bool(convs)))
    return FusedMerge(convs[0], convs[1], (norm_x, norm_lateral), merge.join == "add_concat")


def fused_merge(draft: ConvDraft, unit: SplitMerge, name: str, out: tuple[int, ...], choose: Any) -> FusedMerge:
    """A merge in two terms of a draft of its convolution; ``out`` is the shape of its result."""
    of_x, of_lateral = draft.weight.chunk(2, dim=1)
    if unit.join == "add_concat":
        of_lateral = of_x + of_lateral
    first = ConvDraft(of_x, draft.bias, draft.padding, (1, 1), (1, 1), 1)
    second = ConvDraft(of_lateral, None, draft.padding, (1, 1), (1, 1), 1, draft.act, draft.numbers)
    low = "low" if unit.factor != (1, 1) else _form(first, f"{name}.of_x", out, choose)
    form = _form(second, f"{name}.of_lateral", out, choose)
    return FusedMerge(first.build(low, unit), second.build(form, reuse=True))


def _absorb(draft: ConvDraft, part: nn.Module, site: str, choose: Chooser) -> bool:
    """Take a norm or an activation into a draft."""
    if isinstance(part, nn.BatchNorm2d):
        act = own_act(part)
        if act is None or part.running_mean is None or draft.act != "none" or not choose("fold_norm", site):
            return False
        draft.fold(part)
    else:
        act = activation_of(part)
        if act is None or draft.act != "none":
            return False
    draft.act, draft.numbers = act
    return True


def own_act(norm: nn.Module) -> tuple[str, tuple[float, ...]] | None:
    """The activation inside of a batch norm, which some have; None where it is not known."""
    converter = converter_for_type(type(norm))
    trailing = None if converter is None else converter.trailing(norm)
    if trailing is None:
        return None
    parts = [part for part in trailing if type(part) is not nn.Identity]
    if len(parts) > 1:
        return None
    return activation_of(parts[0]) if parts else ("none", ())


# --- forms --------------------------------------------------------------------------------------------


def _form(draft: ConvDraft, site: str, out: tuple[int, ...], choose: Chooser) -> str:
    """How a convolution is computed: ``out`` is the shape of its result."""
    square = tuple(draft.weight.shape[-2:]) == (3, 3) and draft.padding == (1, 1)
    if not square or draft.groups != 1 or draft.stride != (1, 1) or draft.dilation != (1, 1):
        return "direct"
    outer, inner = draft.weight.shape[:2]
    place = Place("winograd", inner, outer, (3, 3), (out[-2], out[-1]), bias=draft.bias is not None)
    return "winograd" if choose("winograd", site, place=place) else "direct"


# --- graphs -------------------------------------------------------------------------------------------


class _GraphFuser:
    """Fuses the calls of a level, an up-block or the head."""

    def __init__(
        self, module: fx.GraphModule, path: str, shapes: dict[str, tuple[int, ...]], choose: Chooser
    ) -> None:
        self.module, self.graph, self.path, self.choose = module, module.graph, path, choose
        self.shapes = {node: shapes.get(f"{path}.{node.name}") for node in self.graph.nodes}

    def fuse(self) -> None:
        """Fuse every convolution with what follows it."""
        self._inline_units()
        self._drop_dropouts()
        for node in reversed(list(self.graph.nodes)):
            part = self._part(node)
            draft = ConvDraft.of(part) if part is not None and self._is_only_call(node) else None
            if isinstance(part, UpsampledConv2d) and part.kernel_size == (1, 1):
                continue
            if draft is not None and self.choose("fuse", f"{self.path}.{node.target}"):
                self._fuse(node, part, draft)
        self._scale_norms()
        self._reuse_sums()
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()

    def _scale_norms(self) -> None:
        """Make every norm that is left, and the activation behind it, one multiplication and addition."""
        for node in list(self.graph.nodes):
            norm = self._part(node)
            if not isinstance(norm, nn.BatchNorm2d) or not self._is_only_call(node):
                continue
            own, site = own_act(norm), f"{self.path}.{node.target}"
            if own is None or norm.running_mean is None or not self.choose("fold_norm", site):
                continue
            user = next(iter(node.users))
            act = activation_of(self._part(user)) if own[0] == "none" and len(node.users) == 1 else None
            if act is not None and user.args == (node,):
                user.replace_all_uses_with(node)
                self.graph.erase_node(user)
                own = act
            self.module.set_submodule(str(node.target), FusedNorm(*scale_and_shift(norm), *own))

    def _part(self, node: fx.Node) -> Any:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_only_call(self, node: fx.Node) -> bool:
        return sum(n.op == "call_module" and n.target == node.target for n in self.graph.nodes) == 1

    def _inline_units(self) -> None:
        for node in list(self.graph.nodes):
            unit = self._part(node)
            if not isinstance(unit, ConvUnit) or not self._is_only_call(node):
                continue
            value = node.args[0]
            with self.graph.inserting_before(node):
                for name, _ in unit.in_order():
                    value = self.graph.call_module(f"{node.target}.{name}", (value,))
                    self.shapes[value] = self.shapes[node]
            node.replace_all_uses_with(value)
            self.graph.erase_node(node)
            holder = nn.Module()
            for name, child in unit.in_order():
                holder.add_module(name, child)
            self.module.set_submodule(str(node.target), holder)

    def _drop_dropouts(self) -> None:
        for node in list(self.graph.nodes):
            part = self._part(node)
            if part is not None and converter_for(node, part).role == Role.DROPOUT and len(node.args) == 1:
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)

    def _fuse(self, node: fx.Node, conv: Any, draft: ConvDraft) -> None:
        """Put a fused convolution in the place of a convolution and of what follows it."""
        last, other = self._absorbed(node, draft)
        low = isinstance(conv, UpsampledConv2d)
        form = "low" if low else _form(draft, f"{self.path}.{node.target}", self.shapes[last] or (), self.choose)
        self.module.set_submodule(str(node.target), draft.build(form, conv))
        like = {"like": node.args[1]} if low else {}
        with self.graph.inserting_after(last):
            args = (node.args[0],) if other is None else (node.args[0], other)
            new = self.graph.call_module(str(node.target), args, like)
        self.shapes[new] = self.shapes[last]
        name = last.name
        last.replace_all_uses_with(new)
        while last is not node:
            before = next(n for n in last.all_input_nodes if n is node or n is not other)
            self.graph.erase_node(last)
            last = before
        self.graph.erase_node(node)
        new.name = name

    def _absorbed(self, node: fx.Node, draft: ConvDraft) -> tuple[fx.Node, fx.Node | None]:
        """Let a draft take in what follows its convolution: the last node of that, and the map that is added."""
        last, other = node, None
        while len(last.users) == 1:
            user = next(iter(last.users))
            part = self._part(user)
            if part is not None and user.args == (last,):
                if other is not None and isinstance(part, nn.BatchNorm2d):
                    break
                if not _absorb(draft, part, f"{self.path}.{user.target}", self.choose):
                    break
            elif other is None and draft.act == "none" and self._is_sum(user, last):
                other = next(n for n in user.all_input_nodes if n is not last)
            else:
                break
            last = user
        return last, other

    def _is_sum(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether a node adds two different maps of one shape."""
        sums = node.op == "call_function" and node.target in SUMS
        sums = sums or (node.op == "call_method" and node.target in SUM_METHODS)
        inputs = node.all_input_nodes
        return (
            sums
            and not node.kwargs
            and len(node.args) == len(inputs) == 2
            and self.shapes[inputs[0]] is not None
            and self.shapes[inputs[0]] == self.shapes[inputs[1]]
        )

    def _reuse_sums(self) -> None:
        """Let a convolution write into the map that it adds, where nobody reads that map afterwards."""
        place = {node: index for index, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            conv = self._part(node)
            if not isinstance(conv, FusedConv2d) or len(node.args) != 2:
                continue
            other = node.args[1]
            readers = [user for user in other.users if user is not node]
            last = all(place[user] < place[node] for user in readers)
            # What the other readers made is memory of its own, not a view.
            fresh = all(isinstance(self._part(user), FusedConv2d | FusedNorm) for user in readers)
            made = isinstance(self._part(other), FusedConv2d | FusedNorm | Upsample | nn.Conv2d | nn.BatchNorm2d)
            conv.reuse = last and fresh and made and other is not node.args[0]
