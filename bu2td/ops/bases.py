"""Converters to derive from: one per kind of layer that people write themselves.

@bu2td.register_converter(MyAct)
class MyActConverter(bu2td.Activation): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from bu2td.ops.converter import Converter
from bu2td.ops.fields import Field, grouped, windows
from bu2td.ops.roles import Role
from bu2td.ops.site import Change, Rebuilt, Site, System, Term
from bu2td.ops.surgery import led_by, resized


class Activation(Converter):
    """A function of every value alone, with parameters per channel or none."""

    role = Role.ACT


class Dropout(Converter):
    """What drops at random in train mode and passes in eval mode."""

    role = Role.DROPOUT


class Norm(Converter):
    """A norm over (N, C, ...) with parameters and statistics per channel."""

    role = Role.NORM
    width_attributes = ("num_features",)


def pair(value: Any) -> tuple[int, int]:
    """A setting for both axes."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def same_padding(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Padding that keeps the size at stride 1: d (k - 1) / 2 per axis, k odd."""
    return (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)


def fitting(
    kernel: tuple[int, int], size: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """A window, as far as it fits a map (H, W) with its padding."""
    high, wide = (
        max(1, min(k, (n + 2 * p - 1) // d + 1)) for k, n, p, d in zip(kernel, size, padding, dilation, strict=True)
    )
    return high, wide


@dataclass(frozen=True)
class ConvShape:
    """The shape of a convolution: widths, groups, (k_h, k_w), stride, and whether it pads to keep the size."""

    inputs: int
    outputs: int
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    same: bool = True

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """The shape of its weight."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)


class Convolution(Converter):
    """A 2-d convolution (N, C, H, W) -> (N, C', H', W'), with the settings of `torch.nn.Conv2d`.

    Parameters led by the output width follow it; the one named "weight" has the shape (C', C / groups, k_h, k_w).

    Class attributes:
        names: setting of `torch.nn.Conv2d` -> attribute of the module, where it has another name, or None where the
            module has no such setting and works as `torch.nn.Conv2d` does by default.
    """

    role = Role.CONV
    names: Mapping[str, str | None] = MappingProxyType({})

    _DEFAULTS = MappingProxyType({"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"})

    def setting(self, conv: Any, name: str) -> Any:
        """A setting of a module, by the name that `torch.nn.Conv2d` has for it."""
        own = self.names.get(name, name)
        default = self._DEFAULTS.get(name)
        return default if own is None else getattr(conv, own) if default is None else getattr(conv, own, default)

    def pads_itself(self, conv: Any) -> bool:
        """Whether it pads as it runs, as TensorFlow's SAME does: ceil(n / stride) positions, half in front."""
        return False

    def kernel(self, site: Site) -> tuple[int, int]:
        """The window of the convolution."""
        return pair(self.setting(site.layer, "kernel_size"))

    def stride(self, site: Site) -> tuple[int, int]:
        """The stride of the convolution."""
        return pair(self.setting(site.layer, "stride"))

    def groups(self, site: Site) -> int:
        """The groups of the convolution."""
        return int(self.setting(site.layer, "groups"))

    def pads(self, site: Site) -> bool:
        """Whether it has padding."""
        return self.pads_itself(site.layer) or self.setting(site.layer, "padding") not in ((0, 0), 0, "valid")

    def input_width(self, module: Any) -> int | None:
        """The channels that it reads."""
        return int(self.setting(module, "in_channels"))

    def tie(self, site: Site, system: System) -> Any:
        """A dense convolution cuts widths apart, a depthwise one scales, a grouped one divides."""
        inputs, outputs, groups = (
            self.setting(site.layer, name) for name in ("in_channels", "out_channels", "groups")
        )
        entry = system.of(site.tensor())
        width = entry[1]
        if groups > 1 and groups == inputs:
            out = tuple(Term(t.variable, t.scale * (outputs // inputs)) for t in width)
        else:
            out = system.fresh(outputs, site.node.name)
            if groups > 1:
                system.divisible(width, groups, site.node.name, relaxable=True)
                system.divisible(out, groups, site.node.name, relaxable=True)
        return (entry[0], out, *(None if d.kind != "channel" else system.constant(d.size) for d in site.value[2:]))

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build the convolution for other widths, kernel or stride."""
        conv = site.layer
        inputs, outputs = change.sizes[site.source()][1], change.sizes[site.node.name][1]
        count = self.groups(site)
        depthwise = count > 1 and count == self.setting(conv, "in_channels")
        groups = inputs if depthwise else _common_groups(count, inputs, outputs)
        kernel = change.kernel or self.kernel(site)
        padding, mode = self.setting(conv, "padding"), self.setting(conv, "padding_mode")
        if not change.keep_resolution and change.map_size and not isinstance(padding, str) and mode == "zeros":
            kernel = fitting(kernel, change.map_size, pair(padding), pair(self.setting(conv, "dilation")))
        stride = (1, 1) if change.stride_one else self.stride(site)
        same = change.keep_resolution and stride == (1, 1)
        return Rebuilt(module=self.with_shape(conv, ConvShape(inputs, outputs, groups, kernel, stride, same)))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The window over both axes; channels mix within their group."""
        count = self.groups(site)
        field = grouped(fields[site.source()], count, self.setting(site.layer, "out_channels") // count)
        return slide(
            field,
            site,
            self.kernel(site),
            self.stride(site),
            None if self.pads_itself(site.layer) else self.setting(site.layer, "padding"),
            pair(self.setting(site.layer, "dilation")),
            self.setting(site.layer, "padding_mode"),
        )

    def with_shape(self, conv: Any, shape: ConvShape) -> nn.Module:
        """A convolution of the same class and settings with another shape."""
        padding: Any = self.setting(conv, "padding")
        if shape.same and not self.pads_itself(conv):
            padding = same_padding(shape.kernel, pair(self.setting(conv, "dilation")))
        before = self.setting(conv, "out_channels")
        shapes: dict[str, tuple[int, ...]] = {
            name: led_by(parameter.shape, before, shape.outputs, sole=name == "bias")
            for name, parameter in conv._parameters.items()
            if parameter is not None
        }
        shapes["weight"] = shape.weight
        settings = {
            "in_channels": shape.inputs,
            "out_channels": shape.outputs,
            "groups": shape.groups,
            "kernel_size": shape.kernel,
            "stride": shape.stride,
            "padding": padding,
        }
        owned = {self.names.get(name, name): value for name, value in settings.items()}
        return resized(conv, shapes, {name: self._as_before(conv, name, v) for name, v in owned.items() if name})

    @staticmethod
    def _as_before(conv: Any, name: str, value: Any) -> Any:
        """A setting as the module keeps it: one number where it has one for both axes."""
        one = isinstance(getattr(conv, name), int) and isinstance(value, tuple) and len(set(value)) == 1
        return value[0] if one else value

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A dense convolution (groups 1, dilation 1, stride 1) of this site's class and bias."""
        name = self.names.get("dilation", "dilation")
        plain = resized(site.layer, {}, {name: self._as_before(site.layer, name, (1, 1))} if name else {})
        return self.with_shape(plain, ConvShape(in_channels, out_channels, kernel=kernel))


def _common_groups(groups: int, in_channels: int, out_channels: int) -> int:
    """The largest group count up to the given one that divides both widths."""
    return next(g for g in range(groups, 0, -1) if in_channels % g == 0 == out_channels % g)


def slide(
    field: Field,
    site: Site,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Any = None,
    dilation: tuple[int, int] = (1, 1),
    mode: str = "zeros",
    ceil: bool = False,
) -> Field | None:
    """Slide a window over the last two dimensions of a field.

    Args:
        field: of what the site reads.
        site: its dimensions say how many positions there are behind the window.
        kernel, stride, dilation: of the window.
        padding: in front, as layers write it; None or "same": what its size asks for, half in front.
        mode: padding mode.
        ceil: whether the last window may hang over.

    Returns:
        The field; None where the layer makes more or fewer positions than these settings say.
    """
    for i, axis in enumerate((-2, -1)):
        n, size = site.input_dims()[axis].size, site.value[axis].size
        reach = dilation[i] * (kernel[i] - 1) + 1
        if padding in (None, "same"):
            total = max(0, (size - 1) * stride[i] + reach - n)
            before, after = total // 2, total - total // 2
        else:
            before = after = 0 if padding == "valid" else pair(padding)[i]
            expected = (n + 2 * before - reach) // stride[i] + 1
            if size != expected and not (ceil and size == expected + 1):
                return None
        field = windows(field, axis, size, kernel[i], stride[i], before, dilation[i], mode, after)
    return field
