"""The forms of a place as steps that can be timed: alone, at their real shapes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.nn import Merge, Upsample
from bu2td.optimization.fuse import ConvDraft, fused_merge
from bu2td.optimization.kernels import SplitMerge, UpsampledConv2d, WinogradConv2d, lay_out_weights
from bu2td.optimization.places import Place

#: Of a form and its maps.
Step = partial[Tensor]


def trial(
    place: Place, training: bool, batch: int, last: bool = True, like: Tensor | None = None
) -> tuple[Step, Step]:
    """The step of the form as it is and of the new one, at one place.

    Args:
        place: whose forms are tried.
        training: whether a step is a forward and a backward pass; else a forward pass with the weights that a
            network for inference has. Weights lie as their maps do.
        batch: images at once.
        last: whether maps are channels-last; of a place of the rule "channels_last" only the new form's are.
        like: lends its dtype and device; by default those of an empty tensor.
    """
    given = torch.empty(0) if like is None else like
    old, new = (_trained if training else _fused)(place, _conv(place, given))
    sizes: list[tuple[int, ...]] = [(place.inputs, *place.size)]
    if place.rule == "merge":
        fine = tuple(side * place.factor for side in place.size)
        sizes = [(place.inputs // 2, *place.size), (place.inputs // 2, *fine)]
    values = [torch.rand(batch, *size, dtype=given.dtype, device=given.device) for size in sizes]
    run = train if training else infer
    formats = (False, True) if place.rule == "channels_last" else (last, last)
    if old is new:
        new = copy.deepcopy(old)
    for form, form_last in zip((old, new), formats, strict=True):
        form.train(training)
        if training and form_last:
            lay_out_weights(form)
    steps = [
        partial(run, form, *(_laid_out(value, form_last, training) for value in values))
        for form, form_last in zip((old, new), formats, strict=True)
    ]
    return steps[0], steps[1]


def infer(form: nn.Module, *maps: Tensor) -> Tensor:
    """A forward pass."""
    with torch.inference_mode():
        result: Tensor = form(*maps)
        return result


def train(form: nn.Module, *maps: Tensor) -> Tensor:
    """A forward and a backward pass, which leaves gradients."""
    for leaf in (*maps, *form.parameters()):
        leaf.grad = None
    y: Tensor = form(*maps)
    y.backward(torch.ones_like(y))
    return y.detach()


def _laid_out(value: Tensor, last: bool, training: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return value.clone(memory_format=layout).requires_grad_(training)


def _conv(place: Place, like: Tensor) -> nn.Conv2d:
    padding: Any = tuple(d * (k - 1) // 2 for k, d in zip(place.kernel, place.dilation, strict=True))
    return nn.Conv2d(
        place.inputs, place.outputs, place.kernel, padding=padding, dilation=place.dilation, groups=place.groups,
        bias=place.bias, device=like.device, dtype=like.dtype,
    )  # fmt: skip


class _Ahead(nn.Module):
    """A form behind the upsampling that the new form does without."""

    def __init__(self, form: nn.Module, factor: int) -> None:
        super().__init__()
        self.form, self.factor, self.up = form, factor, Upsample("nearest")

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Upsample, and go on."""
        if self.factor > 1:
            sides = [side * self.factor for side in x.shape[-2:]]
            x = self.up(x, others[0] if others else x.new_empty((1, 1, *sides)))
        return self.form(x, *others)


class _Low(nn.Module):
    """A form that reads at low resolution, told the size of its result."""

    def __init__(self, form: nn.Module, factor: int) -> None:
        super().__init__()
        self.form, self.factor = form, factor

    def forward(self, x: Tensor) -> Tensor:
        """Compute at low resolution."""
        sides = [side * self.factor for side in x.shape[-2:]]
        return self.form(x, like=x.new_empty((1, 1, *sides)))


def _trained(place: Place, conv: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    if place.rule == "merge":
        merge = Merge(conv, join=place.join)
        return _Ahead(merge, place.factor), SplitMerge(merge, place.factor)
    if place.rule == "upsample_conv":
        return _Ahead(conv, place.factor), _Low(UpsampledConv2d(conv, place.factor), place.factor)
    return conv, WinogradConv2d(conv) if place.rule == "winograd" else conv


def _fused(place: Place, conv: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    draft = ConvDraft.of(conv)
    assert draft is not None
    plain = draft.build()
    if place.rule == "merge":
        merge = Merge(plain, join=place.join)
        split = SplitMerge(Merge(conv, join=place.join), place.factor)
        with torch.no_grad():
            return _Ahead(merge, place.factor), fused_merge(draft, split, "", (0, 0), lambda *args, **kwargs: False)
    if place.rule == "upsample_conv":
        low = UpsampledConv2d(conv, place.factor)
        # A 1x1 convolution is not fused with its upsampling.
        return _Ahead(plain, place.factor), _Low(
            low if conv.kernel_size == (1, 1) else draft.build("low", low), place.factor
        )
    if place.rule == "winograd":
        return plain, draft.build("winograd")
    return plain, draft.build()
