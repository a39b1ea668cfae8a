"""Attention over maps, as in timm: layers that are bound to the size of their map or to blocks of it.

Keyed by qualified name: timm need not be installed. The layers stay whole. Rebuilt for other widths, heads
keep their number and queries and keys their share of the output width; rebuilt for another place, position
embeddings follow the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
from torch import Tensor, nn

from bu2td.ops import (
    Change,
    Converter,
    ConvShape,
    Rebuilt,
    Role,
    Site,
    System,
    converter_for_type,
    register_converter,
    resized,
)
from bu2td.ops.fields import mix, nothing, tapped, windows
from bu2td_converters.conv import ConvConverter
from bu2td_converters.timm import TimmLayer

_CONV = ConvConverter()


def _conv(conv: Any, inputs: int, outputs: int, stride: tuple[int, int] | None = None) -> nn.Module:
    """A convolution of the same kind for other widths, (inputs -> outputs)."""
    shape = ConvShape(inputs, outputs, 1, tuple(conv.kernel_size), stride or tuple(conv.stride), same=False)
    return _CONV.with_shape(conv, shape)


def _with_width(norm: Any, width: int) -> nn.Module:
    converter: Any = converter_for_type(type(norm))
    return converter.with_width(norm, width)


def _embedding(old: Any, sizes: tuple[int, int], dim: int, attributes: dict[str, Any]) -> nn.Module:
    """Relative positions along both axes: (2 size - 1, dim) each."""
    height, width = ((2 * size - 1, dim) for size in sizes)
    shapes = {"height_rel": height, "width_rel": width}
    return resized(old, shapes, {"dim_head": dim, "scale": dim**-0.5, **attributes})


class _Attention(TimmLayer):
    """Reads (N, C, H, W), returns (N, D, H / s, W / s) where the layer strides by s."""

    role = Role.ATTENTION

    #: The attribute that counts what divides the width of a layer which is as wide as what it reads.
    divisor = "num_heads"

    def kernel(self, site: Site) -> tuple[int, int]:
        height, width = (d.size for d in site.input_dims()[2:])
        return height, width

    def tie(self, site: Site, system: System) -> Any:
        """Channels pass; heads or groups divide them."""
        entry = system.of(site.tensor())
        system.divisible(entry[1], getattr(site.layer, self.divisor), site.node.name, relaxable=True)
        return entry

    def stride(self, site: Site) -> tuple[int, int]:
        """2 where the layer pools its output."""
        return (2, 2) if _pools(site.module) else (1, 1)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Its own place; the rest of the map is a gate."""
        field = mix(fields[site.source()], [1], ())
        for axis, step in zip((-2, -1), self.stride(site), strict=True):
            field = windows(field, axis, site.value[axis].size, step, step)
        return replace(field, gated=True)


def _pools(attention: Any) -> bool:
    return not isinstance(attention.pool, nn.Identity)


def _pool(attention: Any, change: Change) -> nn.Module:
    return nn.Identity() if change.stride_one else resized(attention.pool, {}, {})


def _map_size(site: Site, change: Change) -> tuple[int, int]:
    """(H, W) of the map at the new place; that of the bottom-up network where the place has none."""
    height, width = change.map_size or (d.size for d in site.input_dims()[2:])
    return height, width


class _HeadedAttention(_Attention):
    """Attention whose output is ``num_heads`` values of ``dim_head_v`` wide, whatever width it reads."""

    def tie(self, site: Site, system: System) -> Any:
        """The input width is free; heads divide the output width."""
        entry = system.of(site.tensor())
        out = system.fresh(site.layer.dim_out_v, site.node.name)
        system.divisible(out, site.layer.num_heads, site.node.name, relaxable=True)
        return (entry[0], out, *entry[2:])

    def settings(self, attention: Any, width: int) -> dict[str, Any]:
        """Attributes of the layer for another output width."""
        heads = gcd(attention.num_heads, width)
        value = width // heads
        query = max(1, round(attention.dim_head_qk * value / attention.dim_head_v))
        return {
            "num_heads": heads,
            "dim_head_qk": query,
            "dim_head_v": value,
            "dim_out_qk": heads * query,
            "dim_out_v": width,
            "scale": query**-0.5,
        }


@register_converter("timm.layers.bottleneck_attn.BottleneckAttn")
class BottleneckAttnConverter(_HeadedAttention):
    """Self-attention over the whole map, with one relative position per row and column."""

    def size_multiple(self, module: Any) -> int | None:
        return None

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        """The output's shape at any map size; at its own size the layer runs."""
        if proof:
            return None
        n, _, height, width = inputs[0].shape
        step = 2 if _pools(module) else 1
        return inputs[0].new_empty(n, module.dim_out_v, height // step, width // step)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build projection and position embedding anew."""
        old: Any = site.module
        new: Any = resized(old, {}, self.settings(old, change.sizes[site.node.name][1]))
        height, width = _map_size(site, change)
        query = new.dim_head_qk
        out = 2 * new.dim_out_qk + new.dim_out_v
        new._modules |= {
            "qkv": _conv(old.qkv, change.sizes[site.source()][1], out),
            "pos_embed": _embedding(old.pos_embed, (height, width), query, {"height": height, "width": width}),
            "pool": _pool(old, change),
        }
        return Rebuilt(module=new)


@register_converter("timm.layers.halo_attn.HaloAttn")
class HaloAttnConverter(_HeadedAttention):
    """Self-attention inside blocks, each of which also looks at a halo around it."""

    def kernel(self, site: Site) -> tuple[int, int]:
        return (site.layer.win_size,) * 2

    def stride(self, site: Site) -> tuple[int, int]:
        """2 where queries are strided or the output is pooled."""
        return (2, 2) if site.layer.block_stride > 1 else super().stride(site)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """All of the block and of the halo around it."""
        field, layer = mix(fields[site.source()], [1], ()), site.layer
        pooled = 2 if _pools(layer) else 1
        for axis in (-2, -1):
            blocks = site.input_dims()[axis].size // layer.block_size
            field = windows(field, axis, blocks, layer.win_size, layer.block_size, layer.halo_size)
            per_block = np.arange(blocks * layer.block_size_ds) // layer.block_size_ds
            field = tapped(field, axis, [per_block])
            field = windows(field, axis, site.value[axis].size, pooled, pooled)
        return field

    def size_multiple(self, module: Any) -> int | None:
        """The map is cut into whole blocks."""
        return int(module.block_size)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build projections and position embedding anew; a block that does not divide its new map shrinks."""
        old: Any = site.module
        stride = 1 if change.stride_one else old.block_stride
        block = gcd(old.block_size, *_map_size(site, change)) if self._strideless(old, change) else old.block_size
        settings = self.settings(old, change.sizes[site.node.name][1])
        settings |= {"block_size": block, "block_stride": stride, "block_size_ds": block // stride}
        new: Any = resized(old, {}, {**settings, "win_size": block + 2 * old.halo_size})
        entry = change.sizes[site.source()][1]
        query = new.dim_head_qk
        new._modules |= {
            "q": _conv(old.q, entry, new.dim_out_qk, (stride, stride)),
            "kv": _conv(old.kv, entry, new.dim_out_qk + new.dim_out_v),
            "pos_embed": _embedding(old.pos_embed, (new.win_size,) * 2, query, {"block_size": block // stride}),
            "pool": _pool(old, change),
        }
        return Rebuilt(module=new)

    def _strideless(self, old: Any, change: Change) -> bool:
        return change.stride_one or (old.block_stride == 1 and not _pools(old))


@register_converter("timm.layers.lambda_layer.LambdaLayer")
class LambdaLayerConverter(_Attention):
    """Lambdas instead of attention maps; positions by a convolution, or one embedding per pair of positions."""

    def size_multiple(self, module: Any) -> int | None:
        """One map size where pairs of positions have embeddings, else any."""
        return 1 if module.pos_emb is None else None

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        """The output's shape at any map size; at its own size the layer runs."""
        if proof:
            return None
        n, width, *sides = inputs[0].shape
        step = 2 if _pools(module) else 1
        return inputs[0].new_empty(n, width, *(side // step for side in sides))

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build projection, norms and positions anew."""
        old: Any = site.module
        width = change.sizes[site.node.name][1]
        heads = gcd(old.num_heads, width)
        value = width // heads
        query = max(1, round(old.dim_qk * value / old.dim_v))
        settings: dict[str, Any] = {"num_heads": heads, "dim_v": value, "dim_qk": query}
        shapes: dict[str, tuple[int, ...]] = {}
        if old.pos_emb is not None:
            h, w = settings["feat_size"] = _map_size(site, change)
            shapes = {"pos_emb": (2 * h - 1, 2 * w - 1, query), "rel_pos_indices": (2, h * w, h * w)}
        new: Any = resized(old, shapes, settings)
        new._modules |= {
            "qkv": _conv(old.qkv, width, heads * query + query + value),
            "norm_q": _with_width(old.norm_q, heads * query),
            "norm_v": _with_width(old.norm_v, value),
            "pool": _pool(old, change),
        }
        if old.conv_lambda is not None:
            conv: Any = old.conv_lambda
            by_query = {"weight": (query, *conv.weight.shape[1:]), "bias": (query,)}
            new._modules["conv_lambda"] = resized(conv, by_query, {"out_channels": query})
        return Rebuilt(module=new)


@register_converter("timm.layers.non_local_attn.BilinearAttnTransform")
class BilinearAttnConverter(_Attention):
    """Mixes rows and columns of every block position by matrices that are computed from the map."""

    divisor = "groups"

    def stride(self, site: Site) -> tuple[int, int]:
        return (1, 1)

    def size_multiple(self, module: Any) -> int | None:
        """The map is cut into whole blocks."""
        return int(module.block_size)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build for another width; a block that does not divide its new map shrinks."""
        old: Any = site.module
        width = change.sizes[site.node.name][1]
        groups, block = gcd(old.groups, width), gcd(old.block_size, *_map_size(site, change))
        new: Any = resized(old, {}, {"groups": groups, "block_size": block, "in_channels": width})
        new._modules |= {
            "conv1": _conv_norm_act(old.conv1, width, groups),
            "conv_p": _matrix(old.conv_p, (block, 1), groups, block),
            "conv_q": _matrix(old.conv_q, (1, block), groups, block),
            "conv2": _conv_norm_act(old.conv2, width, width),
        }
        return Rebuilt(module=new)


def _conv_norm_act(unit: Any, inputs: int, outputs: int) -> nn.Module:
    new: Any = resized(unit, {}, {})
    new._modules |= {"conv": _conv(unit.conv, inputs, outputs), "bn": _with_width(unit.bn, outputs)}
    return new


def _matrix(conv: Any, kernel: tuple[int, int], groups: int, block: int) -> nn.Module:
    """The convolution over all of a pooled map that computes a block x block matrix per group."""
    return _CONV.with_shape(conv, ConvShape(groups, block * block * groups, kernel=kernel, same=False))


@register_converter(
    "timm.layers.attention_pool2d.AttentionPool2d", "timm.layers.attention_pool2d.RotAttentionPool2d"
)
class AttentionPoolConverter(TimmLayer):
    """A head that pools a map (N, C, H, W) -> (N, D) by attention. It goes on reading a map of its own size."""

    role = Role.HEAD

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return nothing(len(site.value), gated=True)

    def kernel(self, site: Site) -> tuple[int, int]:
        """The whole map: as large as its position embedding, or as it is for the model's own images."""
        height, width = getattr(site.layer, "feat_size", None) or (d.size for d in site.input_dims()[2:])
        return height, width

    def tie(self, site: Site, system: System) -> Any:
        """The input width is free, and so is the output's, but for a head without projection."""
        entry = system.of(site.tensor())
        pool = site.layer
        projects = isinstance(pool.proj, nn.Linear)
        size = pool.proj.out_features if projects else pool.embed_dim
        out = system.fresh(size, site.node.name) if projects else system.constant(size)
        return (entry[0], out)

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build what reads the map and what makes the output anew; the width of the attention stays."""
        old: Any = site.module
        width, out = change.sizes[site.source()][1], change.sizes[site.node.name][1]
        shapes = {
            name: (*value.shape[:-1], width)
            for name, value in old._parameters.items()
            if name in ("pos_embed", "cls_token") and value is not None
        }
        new: Any = resized(old, shapes, {"in_features": width, "out_features": out})
        for name in ("q", "k", "v", "qkv"):
            linear: Any = old._modules.get(name)
            if linear is not None:
                shape = {"weight": (linear.out_features, width)}
                new._modules[name] = resized(linear, shape, {"in_features": width})
        if isinstance(old.proj, nn.Linear):
            ends = {"weight": (out, old.proj.in_features), "bias": (out,)}
            new._modules["proj"] = resized(old.proj, ends, {"out_features": out})
        return Rebuilt(module=new)


@register_converter("timm.models.edgenext.PositionalEncodingFourier")
class FourierPositionsConverter(Converter):
    """Sine positions (N, D, H, W), computed from a map's size alone and projected to its width."""

    role = Role.ATTENTION

    def tie(self, site: Site, system: System) -> Any:
        """A width of its own, which the reader ties."""
        width = system.fresh(site.layer.token_projection.out_channels, site.node.name)
        return tuple(width if d.kind == "channel" else None for d in site.value)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        return nothing(len(site.value))

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Build the projection for another width."""
        old: Any = site.module
        new: Any = resized(old, {}, {})
        width = change.sizes[site.node.name][1]
        new._modules["token_projection"] = _conv(old.token_projection, old.token_projection.in_channels, width)
        return Rebuilt(module=new)
