"""Top-down networks as backbones of torchvision's detectors: `bu2td.backbone`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bu2td.errors import OptionError
from bu2td.ir import Analysis
from bu2td.maps import converted
from bu2td.options import as_count, as_sequence
from bu2td.packages import imported
from bu2td.runtime import TopDownNetwork, feature_network


class DetectorBackbone(nn.Module):
    """Levels of a top-down network, brought to one width by a feature pyramid network.

    It is what ``torchvision.ops.BackboneWithFPN`` is for bottom-up networks.

    Attributes:
        body: the `FeatureNetwork`, which returns the levels as they are.
        fpn: torchvision's ``FeaturePyramidNetwork``.
        out_channels: width of every map.

    Shapes: (N, C, H, W) -> a dict by name, fine to coarse, "0" for the finest; the extra block's names behind.
    """

    def __init__(self, body: nn.Module, fpn: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of images."""
        return self.fpn(self.body(x))


def backbone(
    model: nn.Module | Analysis,
    reductions: Sequence[int] = (32, 16, 8, 4),
    *,
    out_channels: int = 256,
    extra_blocks: nn.Module | None = None,
    **options: Any,
) -> DetectorBackbone:
    """Make the backbone of a detector, such as ``FasterRCNN(bu2td.backbone(resnet18()), num_classes=91)``.

    Args:
        model: as `bu2td.dense` takes it. A model that is converted ends at the finest of ``reductions``; of a
            converted network finer levels are left out, and the others shared.
        reductions: of the levels that detectors read.
        out_channels: width of the maps.
        extra_blocks: torchvision's for the maps behind the coarsest; by default ``LastLevelMaxPool``, so that there
            are five maps, as the anchors of Faster R-CNN and RetinaNet expect.
        options: of `bu2td.convert`.

    Raises:
        OptionError: a width that is none, or options where nothing is converted.
        ReductionError: the network has no such levels.
        OptimizeError: a converted network that is optimised for inference.
        MissingPackageError: torchvision is not installed.
        TypeError, ModelOutputError, Bu2tdError: as `bu2td.dense`.
    """
    reductions = as_sequence("reductions", reductions)
    as_count("out_channels", out_channels)
    if not reductions or not all(isinstance(each, int) and not isinstance(each, bool) for each in reductions):
        raise OptionError(f"reductions={list(reductions)} must be a list of whole numbers")
    fpn = imported("torchvision.ops.feature_pyramid_network", "torchvision", "the backbone of a detector needs it:")
    ends = {} if isinstance(model, TopDownNetwork) else {"finest_reduction": min(reductions)}
    network = converted(model, {**ends, **options}, ("reductions", "out_channels", "extra_blocks"))
    body = feature_network(network, reductions)
    widths = [level.width for level in reversed(body.plan.levels) if level.reduction in reductions]
    extra = extra_blocks or fpn.LastLevelMaxPool()
    pyramid = fpn.FeaturePyramidNetwork(widths, out_channels, extra)
    like = next(body.parameters())
    return DetectorBackbone(body, pyramid.to(like.device, like.dtype), out_channels)
