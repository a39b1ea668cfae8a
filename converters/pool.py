"""Pooling over windows, to a fixed size, and over the whole map; resampling; padding."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from bu2td.ir import Dim, is_tensor
from bu2td.nn import FixedFilter
from bu2td.ops import (
    Change,
    Converter,
    NoRuleError,
    Rebuilt,
    Role,
    Site,
    System,
    Term,
    broadcast,
    fitting,
    pair,
    positions,
    register_converter,
    resized,
    slide,
    to_size,
)
from bu2td.ops.fields import (
    Field,
    bins,
    mix,
    nothing,
    padded_index,
    resampled,
    tapped,
    transpose,
    viewed,
    windows,
    written_out,
)
from bu2td_converters.conv import pads_itself
from bu2td_converters.timm import TimmLayer


def keep_channels(site: Site, system: System) -> Any:
    """Channels pass; dimensions that are constant behind the operation stay at their size."""
    if not is_tensor(site.value):
        raise NoRuleError("several results, indices of maxima say, have no rule")
    entry = system.of(site.tensor())
    before: tuple[Dim, ...] = site.input_dims()
    return tuple(
        (expr if b.kind == "channel" else system.constant(d.size)) if d.kind == "channel" else None
        for expr, b, d in zip(entry, before, site.value, strict=True)
    )


@register_converter(
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d,
    "timm.layers.pool2d_same.MaxPool2dSame", "timm.layers.pool2d_same.AvgPool2dSame",
)  # fmt: skip
class PoolConverter(Converter):
    """Pooling over windows."""

    role = Role.POOL

    def kernel(self, site: Site) -> tuple[int, int]:
        return pair(site.layer.kernel_size)

    def pads(self, site: Site) -> bool:
        return getattr(site.layer, "padding", 0) not in (0, (0, 0), "valid")

    def stride(self, site: Site) -> tuple[int, int]:
        """The stride; by default as large as the window."""
        return pair(site.layer.stride or site.layer.kernel_size)

    def tie(self, site: Site, system: System) -> Any:
        return keep_channels(site, system)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        layer = site.layer
        padding = None if pads_itself(layer) else getattr(layer, "padding", 0)
        dilation, ceil = pair(getattr(layer, "dilation", 1)), bool(getattr(layer, "ceil_mode", False))
        field = fields[site.source()]
        return slide(field, site, self.kernel(site), self.stride(site), padding, dilation, ceil=ceil)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Give a stride-1 pool 'same' padding, unless it pads itself; even windows become one larger."""
        pool: Any = site.module
        if not change.stride_one and (not change.keep_resolution or self.stride(site) != (1, 1)):
            return Rebuilt(module=self._fitted(site, change))
        if pads_itself(pool):
            return Rebuilt(module=resized(pool, {}, {"stride": (1, 1)}))
        kernel = tuple(k + 1 if k % 2 == 0 else k for k in self.kernel(site))
        padding = tuple(k // 2 for k in kernel)
        new: Any = resized(pool, {}, {"kernel_size": kernel, "stride": (1, 1), "padding": padding})
        new.ceil_mode = False
        return Rebuilt(module=new)

    def _fitted(self, site: Site, change: Change) -> nn.Module:
        """The pool as it is, its window no larger than the map."""
        pool, window = site.layer, self.kernel(site)
        own, dilation = pair(getattr(pool, "padding", 0)), pair(getattr(pool, "dilation", 1))
        kernel = fitting(window, change.map_size, own, dilation) if change.map_size else window
        if kernel == window or change.keep_resolution or pads_itself(pool):
            return resized(pool, {}, {})
        padding = tuple(min(p, k // 2) for p, k in zip(own, kernel, strict=True))
        settings = {"kernel_size": kernel, "stride": self.stride(site)}
        return resized(pool, {}, {**settings, **({"padding": padding} if hasattr(pool, "padding") else {})})


@register_converter(FixedFilter)
class FixedFilterConverter(PoolConverter):
    """The same fixed filter over every channel: like a pooling, it serves any width."""

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """The filter stays; with stride 1 its padding keeps the size."""
        layer: Any = site.module
        if not change.stride_one and (not change.keep_resolution or self.stride(site) != (1, 1)):
            return Rebuilt(module=resized(layer, {}, {}))
        padding = tuple(k // 2 for k in self.kernel(site))
        return Rebuilt(module=resized(layer, {}, {"stride": (1, 1), "padding": padding}))


@register_converter("timm.layers.blur_pool.BlurPool2d")
class BlurPoolConverter(TimmLayer, PoolConverter):
    """A binomial blur before subsampling, one filter per channel in a buffer."""

    def kernel(self, site: Site) -> tuple[int, int]:
        return pair(site.layer.filt_size)

    def stride(self, site: Site) -> tuple[int, int]:
        return pair(site.layer.stride)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The window over both axes; the padding may mirror the map."""
        field, blur = fields[site.source()], site.layer
        left, right, top, bottom = blur.padding
        for axis, (before, after) in ((-2, (top, bottom)), (-1, (left, right))):
            size, kernel, stride = site.value[axis].size, self.kernel(site)[axis], self.stride(site)[axis]
            field = windows(field, axis, size, kernel, stride, before, mode=blur.pad_mode, after=after)
        return field

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build it for another width; its padding keeps the size at stride 1."""
        blur: Any = site.module
        width = change.sizes[site.source()][1]
        shape = (1 if blur.channels is None else width, *blur.filt.shape[1:])
        attributes: dict[str, Any] = {"channels": None if blur.channels is None else width}
        if change.stride_one:
            attributes |= {"stride": 1, "padding": [(blur.filt_size - 1) // 2] * 4}
        return Rebuilt(module=resized(blur, {"filt": shape}, attributes))


@register_converter(nn.PixelUnshuffle, "timm.layers.space_to_depth.SpaceToDepth")
class SpaceToDepthConverter(Converter):
    """Patches of pixels laid out as channels: a downsampler without parameters, which is dropped."""

    role = Role.POOL

    def kernel(self, site: Site) -> tuple[int, int]:
        return pair(getattr(site.layer, "downscale_factor", None) or site.layer.bs)

    def stride(self, site: Site) -> tuple[int, int]:
        return self.kernel(site)

    def tie(self, site: Site, system: System) -> Any:
        """Every channel becomes one per pixel of the patch."""
        entry = system.of(site.tensor())
        high, wide = self.kernel(site)
        return (entry[0], tuple(Term(t.variable, t.scale * high * wide) for t in entry[1]), *entry[2:])

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Every new channel is one pixel of the patch."""
        n, c, height, width = (d.size for d in site.input_dims())
        high, wide = self.kernel(site)
        split = (n, c, height // high, high, width // wide, wide)
        order = (0, 1, 3, 5, 2, 4) if isinstance(site.module, nn.PixelUnshuffle) else (0, 3, 5, 1, 2, 4)
        field = transpose(viewed(fields[site.source()], (n, c, height, width), split), order)
        moved = tuple(split[i] for i in order)
        return viewed(field, moved, tuple(d.size for d in site.value))


@register_converter(
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    "timm.layers.adaptive_avgmax_pool.FastAdaptiveAvgPool2d",
    "timm.layers.adaptive_avgmax_pool.FastAdaptiveMaxPool2d",
)  # fmt: skip
class AdaptivePoolConverter(Converter):
    """Pooling to a fixed size, 1x1 mostly."""

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; a flattening variant drops the pooled dimensions."""
        entry = system.of(site.tensor())
        if len(site.value) == len(entry):
            return keep_channels(site, system)
        return tuple(e for e, d in zip(entry, site.input_dims(), strict=True) if d.kind in ("batch", "channel"))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """A bin per position; a fixed number of them looks at the whole of an image of any size, as a gate."""
        field, rank = fields[site.source()], len(site.value)
        if rank != len(site.input_dims()):
            return nothing(rank, gated=True)
        return to_size(field, site, bins)


@register_converter(
    torch.mean, torch.sum, torch.amax, torch.std, torch.var, torch.norm,
    "method:mean", "method:sum", "method:amax", "method:std", "method:var", "method:norm",
)  # fmt: skip
class ReduceConverter(Converter):
    """Reductions over dimensions, such as ``x.mean((2, 3))``."""

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """Reduced dimensions vanish, or become 1 with ``keepdim``; the others pass."""
        entry = system.of(site.tensor())
        axes = {axis % len(entry) for axis in _reduced_axes(site)}
        if len(site.value) == len(entry):
            return tuple(
                (system.constant(1) if d.kind == "channel" else None) if i in axes else e
                for i, (e, d) in enumerate(zip(entry, site.value, strict=True))
            )
        return tuple(e for i, e in enumerate(entry) if i not in axes)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Elements along the reduced dimensions mix; over all positions of an image that is a gate."""
        return _reduced(fields[site.source()], site, _reduced_axes(site), len(site.value))


def _reduced_axes(site: Site) -> list[int]:
    """The dimensions over which a site reduces: all of them where none is named."""
    reduced = site.literal(2 if site.name == "norm" else 1, "dim")
    axes = range(len(site.input_dims())) if reduced is None else [reduced] if isinstance(reduced, int) else reduced
    if not all(isinstance(axis, int) for axis in axes):
        raise NoRuleError(f"dim={reduced!r} is not written in numbers")
    return list(axes)


def _reduced(field: Field, site: Site, axes: Iterable[int], rank: int) -> Field:
    """The field of a reduction over dimensions, which are gone or 1 long."""
    dims = site.input_dims()
    gone = {axis % len(dims) for axis in axes}
    field = mix(field, gone, positions(dims))
    field = Field(field.lo, field.hi, field.gated or bool(gone & set(positions(dims))))
    if rank == len(dims):
        return field
    kept = [n for i, n in enumerate(field.lo.shape) if i not in gone]
    return Field(field.lo.reshape(kept), field.hi.reshape(kept), field.gated)


@register_converter(torch.max, torch.min, "method:max", "method:min")
class ExtremeConverter(Converter):
    """Largest or smallest values along a dimension, with where they are: two tensors."""

    role = Role.GATE

    def tie(self, site: Site, system: System) -> Any:
        """The dimension vanishes, or becomes 1 with ``keepdim``; the others pass."""
        axis = site.argument(1, "dim")
        if isinstance(axis, fx.Node):
            return broadcast(site, system)  # of two tensors, value by value
        if not isinstance(axis, int):
            raise NoRuleError("only extremes along one dimension have a rule")
        entry = list(system.of(site.tensor()))
        axis %= len(entry)
        kept = len(site.value[0]) == len(entry)
        end = [system.constant(1)] if kept else []
        found = (*entry[:axis], *end, *entry[axis + 1 :])
        return (found, found)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Elements along the dimension mix; over all positions of an image that is a gate."""
        found = _reduced(fields[site.source()], site, [site.literal(1, "dim")], len(site.value[0]))
        return (found, found)


@register_converter(F.interpolate, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
class ResampleConverter(Converter):
    """Resampling inside a block; one that reduces is a pool."""

    role = Role.RESAMPLE

    def role_at(self, site: Site) -> Role:
        """A pool where the output's stride is larger than the input's."""
        before = [d.stride for d in site.input_dims() if d.kind == "height"]
        after = [d.stride for d in site.value if d.kind == "height"]
        return Role.POOL if before and after and after[0] > before[0] else self.role

    def tie(self, site: Site, system: System) -> Any:
        return keep_channels(site, system)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The taps of the mode, along both axes."""
        field, layer = fields[site.source()], site.module

        def setting(position: int, name: str, default: Any) -> Any:
            return getattr(layer, name, default) if layer is not None else site.literal(position, name, default)

        mode = setting(3, "mode", "nearest")
        scale = None if setting(5, "recompute_scale_factor", None) else setting(2, "scale_factor", None)
        scales = scale if isinstance(scale, list | tuple) else (scale, scale)

        def along(field: Field, axis: int, size: int) -> Field | None:
            corners, smooth = bool(setting(4, "align_corners", False)), bool(setting(6, "antialias", False))
            return resampled(field, axis, size, mode, corners, smooth, scales[axis])

        return to_size(field, site, along)


@register_converter(F.pad, "method:pad", nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
                    nn.ReplicationPad2d)  # fmt: skip
class PadConverter(Converter):
    """Padding of the image plane, or of the channels with zeros."""

    role = Role.PAD

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; padded ones are a variable of their own behind them."""
        entry, before = system.of(site.tensor()), site.input_dims()
        result = []
        for expr, b, d in zip(entry, before, site.value, strict=True):
            if expr is not None and d.size > b.size:
                expr = (*expr, *system.fresh(d.size - b.size, site.node.name))
            result.append(expr)
        return tuple(result)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Positions move; added ones depend on nothing, or mirror or repeat others."""
        field, layer = fields[site.source()], site.module
        amounts: Any = layer.padding if layer is not None else site.literal(1, "pad")
        mode = site.literal(2, "mode", "constant")
        if layer is not None:
            kinds = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
            mode = next((kind for cls, kind in kinds.items() if isinstance(layer, cls)), "constant")
        if isinstance(amounts, int):
            amounts = (amounts,) * 4
        if not all(isinstance(a, int) for a in amounts):
            return None
        before = [d.size for d in site.input_dims()]
        for i, front in enumerate(amounts[::2]):
            axis, size = len(before) - 1 - i, site.value[-1 - i].size
            if size == before[axis] and front == 0:
                continue
            if field.lo.shape[axis] == 1 and site.value[axis].kind == "channel":
                field = written_out(field, axis, before[axis])
            index = np.arange(size, dtype=np.int64) - front
            field = tapped(field, axis, [padded_index(index, before[axis], mode)])
        return field

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Deal the new number of added channels out as before, to both sides of the old ones."""
        before, after = site.input_dims()[1].size, site.value[1].size
        if before == after or site.module is not None:
            return Rebuilt()
        amounts = list(site.argument(1, "pad"))
        added = change.sizes[site.node.name][1] - change.sizes[site.source()][1]
        amounts[4] = added * amounts[4] // (after - before)
        amounts[5] = added - amounts[4]
        kwargs = {k: v for k, v in site.node.kwargs.items() if k != "pad"}
        return Rebuilt(args=(site.tensor(), amounts, *site.node.args[2:]), kwargs=kwargs)


@register_converter(torch.roll, "method:roll")
class RollConverter(Converter):
    """Rows, columns or channels moved, those that leave at one end coming in at the other."""

    role = Role.PASS

    def role_at(self, site: Site) -> Role:
        """Of rows and columns it is like padding and cropping at once."""
        dims = site.literal(2, "dims")
        axes = [dims] if isinstance(dims, int) else dims or ()
        moved = {site.input_dims()[axis].kind for axis in axes if isinstance(axis, int)}
        return Role.PAD if moved & {"height", "width"} else self.role

    def tie(self, site: Site, system: System) -> Any:
        """Nothing changes its size."""
        if site.literal(2, "dims") is None:
            raise NoRuleError("a tensor that is moved as a flat list has no rule")
        return system.of(site.tensor())

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Along moved channels fields mix; what comes in at the other end of the image is far away."""
        dims = site.literal(2, "dims")
        axes = [dims] if isinstance(dims, int) else list(dims or ())
        far = self.role_at(site) is Role.PAD or not axes
        return None if far else mix(fields[site.source()], axes, ())
