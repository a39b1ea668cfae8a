"""The modules that converted networks run, and other operations that gain resolution."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from bu2td.nn import Pyramid, TransposedUpsample, Upsample, reduced
from bu2td.ops import Converter, Role, Site, register_converter
from bu2td.ops.fields import Field, grouped, resampled, spans, tapped, transpose, transposed, viewed, windows


@register_converter(Pyramid)
class PyramidConverter(Converter):
    """The image at several reductions."""

    role = Role.RESAMPLE

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        if proof:
            return None
        return tuple(inputs[0].new_empty(shape) for shape in module.shapes(inputs[0].shape))

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Every level by the taps of its reducer."""
        pyramid, found = site.layer, []
        for factor in pyramid.reductions:
            field = fields[site.source()]
            for axis in (-2, -1):
                field = level_field(field, axis, pyramid, factor)
            found.append(field)
        return tuple(found)


def level_field(image: Field, axis: int, pyramid: Pyramid, factor: int) -> Field:
    """The field of a level along one axis of an image whose positions are written out."""
    size = image.lo.shape[axis]
    out = reduced(size, factor)
    if factor == 1 or size == 1:
        return image
    i = np.arange(out, dtype=np.int64)
    if pyramid.reducer == "strided":
        return tapped(image, axis, [i * factor + min(factor // 2, (size - 1) % factor)])
    if pyramid.reducer in ("average", "max"):
        return windows(image, axis, out, factor, factor)
    if pyramid.reducer == "max_blur":
        image = windows(image, axis, size, factor, 1, (factor - 1) // 2)
    # Pixel j weighs something where |j + 1/2 - c| < 3 sigma F; a pixel exactly at the cut-off does not.
    scale = size / out
    centre, reach = scale * (i + 0.5), scale * (3 * pyramid.sigma - 1e-6)
    start = np.floor(centre - reach - 0.5).astype(np.int64) + 1
    stop = np.ceil(centre + reach - 0.5).astype(np.int64)
    return spans(image, axis, start, stop)


@register_converter(Upsample)
class UpsampleConverter(Converter):
    """Interpolation to the size of another tensor."""

    role = Role.RESAMPLE
    aliases = True

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor that it is brought to the size of."""
        return (1,)

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The taps of the mode, along both axes."""
        field: Field | None = fields[site.source()]
        for axis in (-2, -1):
            field = field and resampled(field, axis, site.value[axis].size, site.layer.mode)
        return field


@register_converter(nn.ConvTranspose2d)
class TransposedConvConverter(Converter):
    """A transposed convolution: a rule for fields only."""

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """The positions whose windows reach a place; channels mix within their group."""
        conv = site.layer
        field = grouped(fields[site.source()], conv.groups, conv.out_channels // conv.groups)
        for i, axis in enumerate((-2, -1)):
            settings = conv.kernel_size[i], conv.stride[i], conv.padding[i], conv.dilation[i]
            field = transposed(field, axis, site.value[axis].size, *settings)
        return field


@register_converter(TransposedUpsample)
class TransposedUpsampleConverter(TransposedConvConverter):
    """Learned upsampling to the size of another tensor."""

    role = Role.RESAMPLE

    def lends(self, site: Site) -> tuple[int, ...]:
        """The tensor that it is brought to the size of."""
        return (1,)


@register_converter(nn.PixelShuffle)
class PixelShuffleConverter(Converter):
    """Channels laid out as patches of pixels: a rule for fields only."""

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """Every pixel of a patch is one channel."""
        n, c, height, width = (d.size for d in site.input_dims())
        r = site.layer.upscale_factor
        split = (n, c // r**2, r, r, height, width)
        moved = (n, c // r**2, height, r, width, r)
        field = transpose(viewed(fields[site.source()], (n, c, height, width), split), (0, 1, 4, 2, 5, 3))
        return viewed(field, moved, (n, c // r**2, height * r, width * r))
