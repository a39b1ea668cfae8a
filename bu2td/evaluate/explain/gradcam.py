"""Grad-CAM (Selvaraju et al., 2017) of the levels and the last convolution of a bottom-up or top-down network.

For a map A (C, h, w) inside the network and the logit y of a class, the weight of channel c is the spatial mean of
the gradient dy / dA_c, and the *raw map* is the weighted sum over the channels (equations 1 and 2 there, before the
ReLU)::

    L = sum_c w_c A_c        w_c = mean over positions of dy / dA_c

Two heat maps in [0, 1] are made of it:

* **plain**: ReLU(L), resized bilinearly to the image, divided by its maximum.
* **centred**, as the authors of top-down networks make it: (L - mean(L)) / norm(L - mean(L)), resized bilinearly,
  then ReLU, divided by its maximum. The norm is a positive factor: it cancels in the last step and is not computed.

Plain maps keep every position that speaks for the class; centred maps keep those that do so more than the average
position. Which of the two is used can decide a comparison, so everything here is given for both. A raw map without
positive values (centred: a constant one) gives a heat map of zeros.

By hand on purpose, and not captum: inside an ``fx.GraphModule`` only leaf modules fire hooks. The network runs as
    the
flat graph of `bu2td.erf.subject`, node by node. Weights, gradients, modes and hooks of the network are left as
found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.erf.subject import Subject, check_weights, subject
from bu2td.errors import CaptureError, NonFiniteError, OptionError, nearest
from bu2td.evaluate.checks import (
    as_read,
    check_count,
    check_images,
    check_labels,
    check_logits,
    evaluating,
    is_classifier,
    place_of,
    running,
)
from bu2td.evaluate.explain.layers import find_layer
from bu2td.evaluate.schema import LAYERS, NORMALISATIONS
from bu2td.options import as_device

#: A spread below this share of the largest value is rounding: such a map is constant.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class HeatMaps:
    """Grad-CAM of some layers for some images.

    Attributes:
        levels: names of the layers, in the order asked for. All levels come in the order in which the network
            computes them: bottom-up networks fine to coarse, top-down networks coarse to fine.
        maps: by level the raw maps (N, h, w), float32, on the CPU, before any ReLU.
        targets: the class of every image that is explained (N,), on the CPU.
        logits: (N, K), float32, on the CPU.
        size: height and width of the images.
    """

    levels: tuple[str, ...]
    maps: Mapping[str, Tensor]
    targets: Tensor
    logits: Tensor
    size: tuple[int, int]

    def plain(self, size: Sequence[int] | None = None, levels: str | Sequence[str] | None = None) -> Tensor:
        """Plain heat maps; see `resized`."""
        return self.resized("plain", size, levels)

    def centred(self, size: Sequence[int] | None = None, levels: str | Sequence[str] | None = None) -> Tensor:
        """Centred heat maps; see `resized`."""
        return self.resized("centred", size, levels)

    def resized(
        self, normalisation: str, size: Sequence[int] | None = None, levels: str | Sequence[str] | None = None
    ) -> Tensor:
        """Heat maps in [0, 1] at a common size.

        Args:
            normalisation: "plain" or "centred", as this module defines them.
            size: height and width; by default those of the images.
            levels: one level or several; by default all.

        Returns:
            (N, L, H, W), float32; L levels in the order asked for.

        Raises:
            OptionError: an unknown normalisation or level, or a size that is none.
        """
        if normalisation not in NORMALISATIONS:
            raise OptionError(
                f"normalisation={normalisation!r} is unknown; it must be one of "
                f"{', '.join(map(repr, NORMALISATIONS))}.{nearest(str(normalisation), NORMALISATIONS)}"
            )
        height, width = _size(self.size if size is None else size)
        names = self.levels if levels is None else _names(levels)
        for name in names:
            if name not in self.maps:
                raise OptionError(
                    f"there is no heat map of level {name!r}.{nearest(str(name), self.levels)} There are maps of "
                    f"{', '.join(self.levels)}"
                )
        make = _plain if normalisation == "plain" else _centred
        made = [make(self.maps[name], (height, width)) for name in names]
        return torch.stack(made, 1) if made else torch.zeros(len(self.targets), 0, height, width)


def _plain(raw: Tensor, size: tuple[int, int]) -> Tensor:
    return _over_maximum(_resize(raw.clamp(min=0), size))


def _centred(raw: Tensor, size: tuple[int, int]) -> Tensor:
    wide = raw.double()
    spread = wide - wide.mean((1, 2), keepdim=True)
    constant = spread.abs().amax((1, 2), keepdim=True) <= _CONSTANT * wide.abs().amax((1, 2), keepdim=True)
    return _over_maximum(_resize(spread.masked_fill(constant, 0).float(), size).clamp(min=0))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _over_maximum(maps: Tensor) -> Tensor:
    top = maps.amax((1, 2), keepdim=True)
    return torch.where(top > 0, maps / top.where(top > 0, torch.ones_like(top)), torch.zeros_like(maps))


class GradCam:
    """Grad-CAM of one network, made ready once and called for any number of images.

    Args:
        model: a bottom-up network or a `TopDownNetwork`, or a classifier around one (with ``network``, and
            ``prepare``, which maps images in [0, 1] to what the network reads).
        example_inputs: images (N, C, H, W) as they will be given to the call, which fix channels and size; by
            default the network's own.
        levels: one or several of: a level (``r4``), "levels" for all of them (the default), "last-convolution" and
            "last-level" (`bu2td.evaluate.explain.layers`), modules or nodes of the graph by name.
        device: where it runs; by default where the weights are.

    Attributes:
        levels: the names, all levels spelled out.
        nodes: by name the node of the graph.

    Raises:
        OptionError: an unknown level or device, or one without feature maps.
        Bu2tdError: as `bu2td.analyze`, where the network cannot be followed.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | None = None,
        *,
        levels: str | Sequence[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = model
        inner = model.network if is_classifier(model) else model
        network: Any = getattr(inner, "_orig_mod", inner)  # of a compiled one, what was compiled
        if isinstance(network, nn.Module):
            check_weights(network)
        example = None if example_inputs is None else self._prepared(self._checked(example_inputs)[:2])
        looked_at = subject(network, example)
        nodes = _nodes(looked_at, ("levels",) if levels is None else _names(levels))
        self.nodes = nodes
        self._axes = {node: _axes(looked_at, node, level) for level, node in nodes.items()}
        self.levels = tuple(nodes)
        with torch.inference_mode(False):  # tensors of that mode have no gradients
            self._graph = looked_at.runnable(as_device(device) or place_of(network))
        self._agrees = False

    def __call__(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        batch_size: int = 64,
        *,
        levels: str | Sequence[str] | None = None,
    ) -> HeatMaps:
        """Heat maps of images.

        Args:
            images: (N, C, H, W); in [0, 1] for a classifier, else what the network reads.
            targets: the class to explain for every image (N,); by default the predicted one.
            batch_size: how many images run at once.
            levels: some of ``self.levels``, one name or several; by default all.

        Returns:
            The `HeatMaps`.

        Raises:
            ExampleInputError: the images are no image batch, or the network does not run on them.
            OptionError: targets are not one class per image, or a level is unknown.
            DataError: targets are no classes of the network.
            NonFiniteError: images, logits or gradients are not finite numbers.
            CaptureError: the graph does not compute what the network computes.
        """
        self._checked(images)
        check_count("batch_size", batch_size)
        if targets is not None:
            targets = check_labels(targets, len(images), None, "targets")
        chosen = self._chosen(levels)
        maps: dict[str, list[Tensor]] = {level: [] for level in chosen}
        logits, classes = [], []
        for at in range(0, len(images), batch_size):
            batch = images[at : at + batch_size]
            wanted = None if targets is None else targets[at : at + batch_size]
            y, explained, found = self._batch(batch, wanted, chosen)
            logits.append(y)
            classes.append(explained)
            for level, raw in found.items():
                maps[level].append(raw)
        joined = {level: torch.cat(parts) for level, parts in maps.items()}
        size = (images.shape[2], images.shape[3])
        return HeatMaps(tuple(chosen), joined, torch.cat(classes), torch.cat(logits), size)

    def _chosen(self, levels: str | Sequence[str] | None) -> dict[str, str]:
        """The nodes of some levels."""
        names = self.levels if levels is None else _names(levels)
        for name in names:
            if name not in self.nodes:
                raise OptionError(
                    f"level {name!r} is none of those that were asked for: {', '.join(self.levels)}."
                    f"{nearest(str(name), self.levels)}"
                )
        return {name: self.nodes[name] for name in names}

    def _batch(
        self, images: Tensor, targets: Tensor | None, nodes: Mapping[str, str]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        weight = next(self._graph.parameters(), torch.zeros(()))
        with torch.inference_mode(False), torch.enable_grad():
            x = self._prepared(images).to(weight.device, weight.dtype).clone()
            taps = _Taps(self._graph, set(nodes.values()))
            y = running(taps.run, x)
            check_logits(y, len(images))
            self._compare(images, y)
            if targets is not None:
                check_labels(targets, len(images), y.shape[1], "targets")
            targets = y.detach().argmax(1) if targets is None else targets.to(y.device)
            chosen = y.gather(1, targets[:, None]).sum()
            found = list(taps.tapped.values())
            gradients = torch.autograd.grad(chosen, found, allow_unused=True) if chosen.requires_grad else ()
        by_node = dict(zip(taps.tapped, gradients, strict=False))
        raw = {level: self._raw(node, taps.tapped[node], by_node.get(node)) for level, node in nodes.items()}
        return y.detach().float().cpu(), targets.cpu(), raw

    def _raw(self, node: str, values: Tensor, gradient: Tensor | None) -> Tensor:
        values = values.detach().permute(self._axes[node])
        if gradient is None:  # the logits do not depend on the level
            return values.new_zeros((len(values), *values.shape[2:])).float().cpu()
        weights = gradient.permute(self._axes[node]).mean((2, 3))
        raw = torch.einsum("nchw,nc->nhw", values, weights).float().cpu()
        if not bool(torch.isfinite(raw).all()):
            raise NonFiniteError("Grad-CAM gives values that are not finite numbers: the network's values overflow")
        return raw

    def _checked(self, images: Any) -> Tensor:
        return check_images(images, bounded=is_classifier(self.model))

    def _prepared(self, images: Tensor) -> Tensor:
        """What the network reads of images."""
        model: Any = self.model
        if not is_classifier(model):
            return images.detach()
        with torch.no_grad():
            return running(model.prepare, images.detach().to(place_of(model)))

    def _compare(self, images: Tensor, found: Tensor) -> None:
        """Once: the graph must compute what the model computes."""
        if self._agrees:
            return
        images = images[:8]
        with evaluating(self.model), torch.no_grad():
            expected = running(self.model, as_read(images, self.model))
        check_logits(expected, len(images))
        found, expected = found[: len(images)].detach().double().cpu(), expected.double().cpu()
        exact = all(p.dtype in (torch.float32, torch.float64) and p.is_cpu for p in self.model.parameters())
        # Sums are rounded in another order: on accelerators and in half precision by more.
        bound = (1e-3 if exact else 3e-2) * float(expected.abs().max())
        apart = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        if apart > bound:
            raise CaptureError(
                f"the captured graph of {type(self.model).__name__} does not compute what the model computes "
                f"(logits differ by {apart:.3g}), so that it cannot be explained level by level. The usual causes "
                f"are hooks, and a forward that depends on values or on the image's size: remove hooks, and give "
                f"example_inputs of the size of the images"
            )
        self._agrees = True


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None = None,
    *,
    levels: str | Sequence[str] | None = None,
    example_inputs: Tensor | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> HeatMaps:
    """Grad-CAM of layers of a network; `GradCam` does the same for several calls.

    Args:
        model: a bottom-up or top-down network, or a classifier around one.
        images: (N, C, H, W); in [0, 1] for a classifier, else what the network reads.
        targets: the class to explain for every image (N,); by default the predicted one.
        levels: as for `GradCam`; by default all levels, in the network's order.
        example_inputs: images that fix channels and nominal size; by default the images.
        batch_size: how many images run at once.
        device: where it runs; by default where the weights are.

    Returns:
        The `HeatMaps`.

    Raises:
        Bu2tdError: as `GradCam` and its call.
    """
    check_images(images, bounded=is_classifier(model))
    cam = GradCam(model, images if example_inputs is None else example_inputs, levels=levels, device=device)
    return cam(images, targets, batch_size)


class _Taps(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, so that gradients with respect to them can be taken.

    What runs on is a copy, since an activation behind the node may work in place. Nothing before the first kept
    node needs a gradient.
    """

    def __init__(self, network: fx.GraphModule, nodes: set[str]) -> None:
        super().__init__(network)
        self.nodes = nodes
        self.tapped: dict[str, Tensor] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self.nodes:
            return result
        kept = result if result.requires_grad else result.detach().clone().requires_grad_(True)
        self.tapped[n.name] = kept
        return kept.clone()


# --- arguments -------------------------------------------------------------------------------------------


def _names(levels: str | Sequence[str]) -> tuple[str, ...]:
    return (levels,) if isinstance(levels, str) else tuple(levels)


def _nodes(looked_at: Subject, names: Sequence[str]) -> dict[str, str]:
    """Nodes by the names under which they were asked for; "levels" are all levels in the network's order."""
    place = {node.name: i for i, node in enumerate(looked_at.graph_module.graph.nodes)}
    nodes: dict[str, str] = {}
    for name in names:
        if name == "levels":
            nodes |= sorted(looked_at.levels.items(), key=lambda item: place[item[1]])
        else:
            nodes |= {name: find_layer(looked_at, name)} if name in LAYERS else looked_at.nodes_of([name])
    if not nodes:
        raise OptionError(f"the {looked_at.title} has no level to explain; name layers with levels=[...]")
    return nodes


def _axes(looked_at: Subject, node: str, level: str) -> tuple[int, int, int, int]:
    """The permutation of a node's dimensions to (N, C, H, W)."""
    rows, columns = looked_at.axes(node, level)
    kinds = [d.kind for d in looked_at.dims[node]]
    others = [i for i in range(1, len(kinds)) if i not in (rows, columns)]
    if kinds[0] != "batch" or len(others) != 1:
        raise OptionError(
            f"layer {level!r} has dimensions {', '.join(kinds)}; Grad-CAM needs batch, channels, rows and columns"
        )
    return (0, others[0], rows, columns)


def _size(size: Any) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise OptionError(f"size={size!r} must be (height, width) in whole numbers")
    return sides
