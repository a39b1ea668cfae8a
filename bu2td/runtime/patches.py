"""Patches: the finest levels of a top-down network run only where its coarser levels look.

The finest levels cost most, and read every position. In a large image most positions do not matter: Lelekas et al.
(2020) propose to process only the parts of it that the coarser levels find relevant. `PatchNetwork` does so:

1. The coarser levels see the whole image. An auxiliary classifier (global average pooling and a linear layer) on
   the last of them, A (N, C, h, w), predicts a class k.
2. Its Grad-CAM (Selvaraju et al., 2017, equations 1 and 2) says where that class is. The weight of channel c is the
   mean gradient of the logit, for this classifier W_kc / (h w), so that the map needs no backward pass:
   ReLU(sum_c W_kc A_c), up to a factor.
3. The window of a given share of the image with the largest sum of that map is cut out of A and out of the
   pyramid's finer images, with a margin of context around it.
4. The finest levels run on the crop, and the head reads the window.

Convolutions see zeros around the crop where the whole image has context; a margin of the receptive field makes the
window's features equal those of the whole image. What is global in a finer level (squeeze-and-excitation, batch
statistics in training) sees the crops only. Crops are cut by indexing, so that gradients pass, and nothing waits
for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bu2td.errors import ImageSizeError, NotAModelError, OptimizeError, OptionError, shown
from bu2td.nn import Pyramid, reduced
from bu2td.ops import meta_copy
from bu2td.options import as_seed
from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.pixels import HeadedNetwork
from bu2td.runtime.sharing import Shared


class PatchNetwork(nn.Module, Shared):
    """A top-down network whose finest levels run on the crop that its coarser levels choose.

    Train it as any network; the auxiliary classifier has new weights and must be trained, too::

        patches = bu2td.PatchNetwork(td, share=0.5, finest=2)
        logits, auxiliary = patches.forward_both(images)
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary, labels)

    `bu2td.save` and `bu2td.load` take it as any converted network.

    Args:
        network: a converted network; it is not copied. Optimise it with ``mode="training"`` before, if at all.
        share: height and width of the window as shares of the image's, in (0, 1]. With 1 the network runs whole.
        finest: how many levels run on crops, from the finest one.
        margin: positions of the last coarser level that are computed around the window, as context.
        seed: of the auxiliary classifier's weights.

    Attributes:
        coarse: name of the last level that sees the whole image.
        reduction: of that level.
        auxiliary: the classifier on it.

    Raises:
        NotAModelError: not a converted network.
        OptionError: an option is out of its range.
        ImageSizeError: the network's layers are bound to an image size, which no crop has.
        OptimizeError: the network is optimised for inference.

    Shapes: (N, C, H, W) -> (N, num_classes).
    """

    def __init__(
        self, network: TopDownNetwork, *, share: float = 0.5, finest: int = 1, margin: int = 1, seed: int = 0
    ) -> None:
        _check(network, share, finest, margin)
        seed = as_seed(seed)
        super().__init__()
        self.network = network
        self.share, self.finest, self.margin = float(share), finest, margin
        level = network.plan.levels[-finest - 1]
        self.coarse, self.reduction = level.name, level.reduction
        weight = next(network.parameters())
        sizes = (level.width, network.num_classes)  # its weights are drawn below, not from torch's own generator
        self.auxiliary = nn.utils.skip_init(nn.Linear, *sizes, device=weight.device, dtype=weight.dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.auxiliary.weight.copy_(torch.randn(self.auxiliary.weight.shape, generator=generator) * 0.01)
            self.auxiliary.bias.zero_()
        self.train(network.training)

    @property
    def recipe(self) -> dict[str, Any]:
        """What `bu2td.load` needs to build it again."""
        chosen = {"share": self.share, "finest": self.finest, "margin": self.margin}
        return {**self.network.recipe, "patches": chosen}

    @property
    def _from(self) -> str:
        """The node that the finest levels start from."""
        return self.network.stages.outputs[-self.finest - 1]

    @property
    def _until(self) -> str:
        """The node of the finest level's output."""
        return self.network.stages.outputs[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the crops."""
        return self.forward_both(images)[0]

    def forward_both(self, images: Tensor, windows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of the crops and those of the auxiliary classifier, each (N, num_classes).

        Args:
            images: (N, C, H, W).
            windows: (N, 4) in pixels, as `windows` returns them, to look there; only top and left are read, and
                rounded down to a position of the coarser level.

        Raises:
            OptionError: windows of another shape, or that are not inside of the images.
        """
        values, features, auxiliary = self._look(images)
        window, _ = self._sizes(images)
        if window == tuple(features.shape[-2:]):
            fine = self.network.run_from(self._from, values, self._until)[self._until]
        else:
            corner = self._choose(features, auxiliary, images) if windows is None else self._given(windows, images)
            fine = self._fine(values, images, corner)
        return self.network.forward_head(fine), auxiliary

    def heat_maps(self, images: Tensor) -> Tensor:
        """Grad-CAM of the auxiliary classifier's prediction, up to a factor: (N, h, w), not negative."""
        _, features, auxiliary = self._look(images)
        return _cam(features, self.auxiliary.weight, auxiliary).clamp(min=0)

    def windows(self, images: Tensor) -> Tensor:
        """The window of every image in its pixels: (N, 4), top, left, height, width."""
        (height, width), _ = self._sizes(images)
        _, features, auxiliary = self._look(images)
        if (height, width) == tuple(features.shape[-2:]):
            whole = torch.tensor([0, 0, *images.shape[-2:]], device=images.device)
            return whole.expand(len(images), 4)
        corner = self._choose(features, auxiliary, images)
        size = torch.tensor([height, width], device=images.device).expand_as(corner)
        return self.reduction * torch.cat([corner, size], dim=1)

    @torch.no_grad()
    def macs(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Multiply-accumulates for one image of a size: with crops, and of the whole network."""
        twin: Any = meta_copy(self).eval()
        shape = (1, self.network.plan.image_shape[1], *image_size)
        images = torch.empty(shape, device="meta", dtype=self.auxiliary.weight.dtype)
        counts = []
        for network in (twin, twin.network):
            with FlopCounterMode(display=False) as counter:
                network(images)
            counts.append(counter.get_total_flops() // 2)
        return counts[0], counts[1]

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"share={self.share}, finest={self.finest}, margin={self.margin}"

    # -- where ---------------------------------------------------------------------------------------------

    def _sizes(self, images: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width, in positions of the coarser level, of the window and of the crop around it."""
        sides = [reduced(side, self.reduction) for side in images.shape[-2:]]
        # A window may only have positions that are whole: the last one of an odd side is not.
        whole = [max(1, side // self.reduction) for side in images.shape[-2:]]
        if self.share == 1:
            return (sides[0], sides[1]), (sides[0], sides[1])
        window = [max(1, min(round(self.share * side), most)) for side, most in zip(sides, whole, strict=True)]
        crop = [min(side + 2 * self.margin, most) for side, most in zip(window, whole, strict=True)]
        return (window[0], window[1]), (crop[0], crop[1])

    def _given(self, windows: Tensor, images: Tensor) -> Tensor:
        """Top and left of given windows in positions."""
        if windows.shape != (len(images), 4):
            raise OptionError(f"windows must be of shape ({len(images)}, 4), found {tuple(windows.shape)}")
        (height, width), _ = self._sizes(images)
        corner = windows[:, :2].to(images.device).long() // self.reduction
        most = [
            side // self.reduction - size for side, size in zip(images.shape[-2:], (height, width), strict=True)
        ]
        if bool(((corner < 0) | (corner > corner.new_tensor(most))).any()):
            raise OptionError(
                f"windows must be inside of the images: top at most {most[0] * self.reduction} and left at most "
                f"{most[1] * self.reduction} for windows of {height * self.reduction}x{width * self.reduction}"
            )
        return corner

    def _choose(self, features: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Top and left of the best window of every image, in positions: (N, 2)."""
        window, _ = self._sizes(images)
        height, width = (side // self.reduction for side in images.shape[-2:])
        raw = _cam(features.detach(), self.auxiliary.weight.detach(), logits.detach())[:, :height, :width]
        heat = raw.clamp(min=0)
        heat = torch.where(heat.amax((1, 2), keepdim=True) > 0, heat, raw)
        scores = F.avg_pool2d(heat[:, None], window, stride=1)[:, 0]
        best = scores.flatten(1).argmax(1)
        return torch.stack([best // scores.shape[-1], best % scores.shape[-1]], dim=1)

    # -- the two halves of the network ---------------------------------------------------------------------

    def _look(self, images: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Run the coarser levels: values of the top graph, the last level's output, the auxiliary logits."""
        values = self.network.run_until(self._from, images)
        features = values[self._from]
        return values, features, self.auxiliary(features.mean((2, 3)))

    def _fine(self, values: dict[str, Any], images: Tensor, corner: Tensor) -> Tensor:
        """The finest level's output on the windows."""
        window, crop = self._sizes(images)
        whole = torch.tensor([side // self.reduction for side in images.shape[-2:]], device=corner.device)
        size = torch.tensor(crop, device=corner.device)
        start = torch.minimum((corner - self.margin).clamp(min=0), whole - size)
        pyramid = list(values[self.network.stages.pyramid])
        for index, level in enumerate(self.network.plan.levels[-self.finest :], len(pyramid) - self.finest):
            factor = self.reduction // level.reduction
            pyramid[index] = _cut(pyramid[index], factor * start, (factor * crop[0], factor * crop[1]))
        known = {self.network.stages.pyramid: tuple(pyramid), self._from: _cut(values[self._from], start, crop)}
        fine = self.network.run_from(self._from, known, self._until)[self._until]
        factor = self.reduction // self.network.plan.levels[-1].reduction
        return _cut(fine, factor * (corner - start), (factor * window[0], factor * window[1]))


def _check(network: Any, share: Any, finest: Any, margin: Any) -> None:
    _check_network(network)
    most = len(network.plan.levels) - 1
    if not isinstance(finest, int) or isinstance(finest, bool) or not 1 <= finest <= most:
        raise OptionError(
            f"finest={shown(finest)} must be a whole number from 1 to {most}: at least one of the network's "
            f"{most + 1} levels sees the whole image"
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise OptionError(f"share={shown(share)} must be a number above 0 and at most 1")
    if not isinstance(margin, int) or isinstance(margin, bool) or not 0 <= margin < 2**31:
        raise OptionError(f"margin={shown(margin)} must be a whole number of positions, at least 0")


def _check_network(network: Any) -> None:
    if not isinstance(network, TopDownNetwork):
        raise NotAModelError(f"PatchNetwork takes a network that bu2td.convert returned, found {type(network)}")
    if isinstance(network, HeadedNetwork):
        raise NotAModelError(
            "PatchNetwork takes a network that classifies images, found one of maps; of those, every pixel is read"
        )
    if network.num_classes < 1:
        raise OptionError("the network has no classifier; give it one with td.reset_classifier(num_classes)")
    if network.is_fused:
        raise OptimizeError(
            "this network is optimised for inference and cannot train, but the auxiliary classifier of patches "
            "must; take the network that it was made of, or bu2td.optimize(td, mode='training')"
        )
    pyramid: Any = network.pyramid
    if isinstance(pyramid, Pyramid) and (pyramid.size is not None or pyramid.multiples):
        raise ImageSizeError(
            "layers of this network are bound to an image size (plan.notes names them), which no crop has"
        )


def _cam(features: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    """sum_c W_kc A_c for the most likely class k of every image: (N, h, w)."""
    return torch.einsum("nchw,nc->nhw", features, weight[logits.argmax(1)])


def _cut(maps: Tensor, start: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops of one size of maps (N, C, H, W), each with its own top and left (N, 2); channels last in memory."""
    count = torch.arange(maps.shape[0], device=maps.device)[:, None, None]
    rows = start[:, 0, None] + torch.arange(size[0], device=maps.device)
    columns = start[:, 1, None] + torch.arange(size[1], device=maps.device)
    return maps.permute(0, 2, 3, 1)[count, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
