"""Effective receptive fields by gradients (Luo et al., 2016): which pixels a unit really depends on.

Definition. Let y_c(p) be channel c of a layer's map at position p, and p0 its centre, (H // 2, W // 2). For one
image x the field is the map of absolute gradients, summed over the image's channels k,

    g(q) = sum_k | d (sum_c y_c(p0)) / d x_k(q) |,

as in the paper, which sends a gradient of one into every channel of the centre unit and of zero elsewhere; and
the effective field is its mean over the images. It is a distribution over pixels, of mass g(q) / sum g. From it:

centroid
    the mean of the pixels' coordinates, weighted by mass.
size_68, size_95
    the side of the smallest square around the centroid whose whole pixels hold 68 % (95 %) of the mass: the pixels
    are ordered by d(q) = max(|y - cy|, |x - cx|), and the side is 2 d + 1 at the first that completes the share. A
    field of k x k equal pixels has side k where all of it counts.
sigma
    standard deviation of the Gaussian that has the distribution's second moments, by the mean of the two variances:
    sqrt((var_y + var_x) / 2), in pixels. The paper finds fields of this shape.
share
    of the mass inside the theoretical field (`bu2td.erf.theory`): 1 but for gates, which see the whole image.

Where the gradient is zero for every image (activations are flat, a path ends in a zero weight), sizes are 0.

Source: Luo, Li, Urtasun, Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks", NeurIPS 2016, sections 2 and 4.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.erf.intervals import Line, intervals
from bu2td.erf.plot import plot_maps
from bu2td.erf.subject import Subject, check_weights, subject
from bu2td.erf.table import Table
from bu2td.errors import ExampleInputError, NonFiniteError, OptionError, first_line
from bu2td.ir import Analysis, format_table
from bu2td.options import as_count, as_device, as_seed, as_size

__all__ = ["Gradients", "centre_fields", "gradient", "input_gradients"]


@dataclass(frozen=True)
class Gradients(Table):
    """Effective receptive fields of the layers of one network.

    Attributes:
        title: which network.
        rows: a dict per layer, coarse to fine for levels: name, node, reduction, size_68, size_95, sigma, centroid
            (y, x), share, theory (the theoretical field's (h, w); None behind an operation without a rule), clipped
            (the theoretical field leaves the image, so that sizes are those of what is left of it). Share is None
            without a theoretical field, share and centroid where all gradients are zero.
        maps: by name the distribution over the image, (H, W), float32, of sum 1 (or 0).
        image_size: (H, W).
        count: images that were averaged.
    """

    title: str
    rows: list[dict[str, Any]]
    maps: dict[str, Tensor]
    image_size: tuple[int, int]
    count: int

    def __str__(self) -> str:
        height, width = self.image_size
        columns = ("name", "reduction", "size_68", "size_95", "sigma", "share", "theory", "clipped")
        table = [{c: _shown(c, row[c]) for c in columns} for row in self.rows]
        head = f"{self.title}, gradients of the centre unit, {self.count} images of {height}x{width}"
        return f"{head}\n{format_table(table)}"

    def to_dict(self) -> dict[str, Any]:
        """Title, image size, count and rows as JSON-ready data."""
        about = {"title": self.title, "image_size": list(self.image_size), "count": self.count}
        return {**about, "rows": self.rows}

    def plot(self, file: str | os.PathLike[str]) -> None:
        """Draw the heat map of every layer; .png, .svg or .pdf.

        Raises:
            OptionError: another suffix.
            FileError: the file cannot be written.
            MissingPackageError: matplotlib is not installed.
        """
        plot_maps(self.title, self.maps, self.image_size, file)


@dataclass(frozen=True)
class CentreField:
    """The theoretical field of a centre unit.

    Attributes:
        rows, columns: its pixels inside the image.
        size: its height and width without borders.
        clipped: whether the image cuts it off.
    """

    rows: slice
    columns: slice
    size: tuple[int, int]
    clipped: bool


def _shown(column: str, value: Any) -> Any:
    if column in ("size_68", "size_95", "sigma"):
        return round(value, 1)
    if column == "share":
        return "" if value is None else f"{value:.1%}"
    if column == "clipped":
        return "image" if value else ""
    return value


def gradient(
    model: nn.Module | Analysis | Subject,
    *,
    layers: str | Sequence[str] = "levels",
    example_inputs: Tensor | None = None,
    count: int = 16,
    batch_size: int = 4,
    input_size: int | Sequence[int] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    images: Tensor | None = None,
) -> Gradients:
    """Measure the effective receptive field of the centre unit of layers (this module defines every number).

    The network is copied; its mode, weights, gradients and hooks are untouched. It runs in eval mode, in single
    precision (double where its weights are).

    Args:
        model: a live bottom-up network, its analysis, or a `TopDownNetwork`, with weights.
        layers: "levels", or names of levels (``r16``), nodes of the graph, or modules.
        example_inputs: an image batch, which fixes channels and nominal size as in `bu2td.analyze`.
        count: how many standard normal random images are averaged.
        batch_size: how many of them run at once.
        input_size: height and width of the random images, or one number for both; channels in front of them are
            read over. By default the network's own.
        device: where it runs; by default where the weights are.
        seed: of the random images.
        images: real images (N, C, H, W) in their place.

    Returns:
        The `Gradients`.

    Raises:
        Bu2tdError: as `bu2td.analyze`; `OptionError` for an unknown layer or a layer without positions,
            `NonFiniteError` for weights or gradients that are not finite numbers, `NotAModelError` for a network
            without weights, `ExampleInputError` for images on which the network does not run.
    """
    _check_counts(count, batch_size, seed)
    target = as_device(device)
    if target is not None and target.type == "meta":
        raise OptionError("device='meta' holds no numbers; gradients need a device that does")
    looked_at = subject(model, example_inputs)
    nodes = looked_at.nodes_of(layers)
    check_weights(looked_at.source)
    _check_finite(looked_at)
    source = next(looked_at.source.parameters(), torch.zeros(())).device
    with torch.inference_mode(False):  # tensors of that mode have no gradients
        network = looked_at.runnable(target or source)
    batches: Iterator[Tensor]
    if images is None:
        size = _image_size(input_size, looked_at.image_shape)
        batches = _random_images(count, batch_size, looked_at.image_shape[1], size, seed)
    else:
        _check_images(images)
        count, size = len(images), (images.shape[-2], images.shape[-1])
        batches = iter(images.split(batch_size))
    axes = {node: looked_at.axes(node) for node in nodes.values()}
    found = input_gradients(network, axes, batches)
    maps = {layer: _distribution(layer, found[node]) for layer, node in nodes.items()}
    fields = centre_fields(looked_at, nodes, size)
    rows = [
        _row(layer, node, looked_at, maps[layer], fields.get(layer), axes[node]) for layer, node in nodes.items()
    ]
    return Gradients(looked_at.title, rows, {k: m.float() for k, m in maps.items()}, size, count)


# --- running ------------------------------------------------------------------------------------------


def input_gradients(
    network: fx.GraphModule, axes: Mapping[str, tuple[int, int]], batches: Iterator[Tensor]
) -> dict[str, Tensor]:
    """The mean over images of the absolute input gradients of centre units, summed over the image's channels.

    Args:
        network: a graph, in eval mode; images follow the device and precision of its weights, if it has any.
        axes: the nodes, with the dimensions that count rows and columns in their values.
        batches: image batches (N, C, H, W).

    Returns:
        By node a map (H, W), float64, on the CPU.

    Raises:
        ExampleInputError: the network does not run on the images.
    """
    weight = next(network.parameters(), None)
    needed = _cut_off(network, set(axes))
    total: dict[str, Tensor] = {}
    seen = 0
    for batch in batches:
        with torch.inference_mode(False), torch.enable_grad():
            x = batch.detach().clone()
            x = (x if weight is None else x.to(weight.device, weight.dtype)).requires_grad_(True)
            try:
                centres = _Centres(needed, axes).measure(x)
            except (RuntimeError, ValueError, AssertionError) as error:
                reason = first_line(error)
                raise ExampleInputError(
                    f"the network does not run on images of shape {tuple(batch.shape)}: {reason}"
                ) from error
            for i, (node, centre) in enumerate(centres.items()):
                [g] = torch.autograd.grad(centre, [x], retain_graph=i + 1 < len(centres), allow_unused=True)
                g = torch.zeros_like(x) if g is None else g
                g = g.detach().abs().sum((0, 1), dtype=torch.float64).cpu()
                total[node] = total[node] + g if node in total else g
        seen += len(batch)
    return {node: value / seen for node, value in total.items()}


class _Centres(fx.Interpreter):
    """Runs a graph and keeps the sum over the channels of the centre units of some nodes.

    The sum is taken as soon as the node has run: an activation behind it may work in place.
    """

    def __init__(self, network: fx.GraphModule, axes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(network)
        self.axes = axes
        self.centres: dict[str, Tensor] = {}
        self.extra_traceback = False

    def measure(self, x: Tensor) -> dict[str, Tensor]:
        self.run(x)
        return self.centres

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.axes:
            high, wide = self.axes[n.name]
            row = result.select(high, result.shape[high] // 2)
            self.centres[n.name] = row.select(wide - (wide > high), result.shape[wide] // 2).sum()
        return result


def _cut_off(network: fx.GraphModule, names: set[str]) -> fx.GraphModule:
    """The part of the graph that the nodes need."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    missing = set(names)
    for node in network.graph.nodes:
        if not missing:
            break
        env[node] = graph.node_copy(node, env.__getitem__)
        missing.discard(node.name)
    graph.output(tuple(new for old, new in env.items() if old.name in names))
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    return fx.GraphModule(network, graph)


def _random_images(
    count: int, batch_size: int, channels: int, size: tuple[int, int], seed: int
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, batch_size):
        yield torch.randn((min(batch_size, count - start), channels, *size), generator=generator)


# --- numbers ------------------------------------------------------------------------------------------


def _distribution(layer: str, mass: Tensor) -> Tensor:
    total = mass.sum()
    if not bool(torch.isfinite(total)):
        raise NonFiniteError(f"the gradients of layer {layer!r} are not finite numbers: its values overflow")
    return mass / total if total > 0 else mass  # all zero where every activation on the way is flat


def _moments(mass: Tensor) -> tuple[tuple[float, float], float]:
    """Centroid and sigma of a distribution (H, W)."""
    centre, variance = [], 0.0
    for axis in (0, 1):
        marginal = mass.sum(1 - axis)
        at = torch.arange(len(marginal), dtype=torch.float64)
        mean = float((marginal * at).sum())
        variance += float((marginal * (at - mean) ** 2).sum()) / 2
        centre.append(mean)
    return (centre[0], centre[1]), variance**0.5


def _side(mass: Tensor, centre: tuple[float, float], share: float) -> float:
    """Side of the smallest square around the centre whose whole pixels hold a share of the mass."""
    rows = (torch.arange(mass.shape[0], dtype=torch.float64) - centre[0]).abs()
    columns = (torch.arange(mass.shape[1], dtype=torch.float64) - centre[1]).abs()
    distance, order = torch.maximum(rows[:, None], columns[None, :]).flatten().sort()
    held = mass.flatten()[order].cumsum(0)
    # The tolerance keeps rounding from asking for one more ring.
    first = int(torch.searchsorted(held, share * float(held[-1]) - 1e-9))
    return float(2 * distance[min(first, len(held) - 1)] + 1)


def _row(
    layer: str, node: str, looked_at: Subject, mass: Tensor, field: CentreField | None, axes: tuple[int, int]
) -> dict[str, Any]:
    reached = bool(mass.any())
    centre, sigma = _moments(mass)
    stride = looked_at.dims[node][axes[0]].stride
    return {
        "name": layer,
        "node": node,
        "reduction": int(stride) if stride.denominator == 1 else float(stride),
        "size_68": _side(mass, centre, 0.68) if reached else 0.0,
        "size_95": _side(mass, centre, 0.95) if reached else 0.0,
        "sigma": sigma,
        "centroid": centre if reached else None,
        "share": None if field is None or not reached else float(mass[field.rows, field.columns].sum()),
        "theory": None if field is None else field.size,
        "clipped": field is not None and field.clipped,
    }


# --- checks -------------------------------------------------------------------------------------------


def _check_counts(count: Any, batch_size: Any, seed: Any) -> None:
    as_count("count", count)
    as_count("batch_size", batch_size)
    as_seed(seed)


def _image_size(input_size: Any, own: Sequence[int]) -> tuple[int, int]:
    if input_size is None:
        return (own[-2], own[-1])
    has_channels = isinstance(input_size, Sequence) and len(input_size) == 3
    return as_size("input_size", tuple(input_size)[-2:] if has_channels else input_size)


def _check_images(images: Any) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not images.numel():
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images)
        raise ExampleInputError(f"images must be a floating point image batch (N, C, H, W), found {found}")
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError("the images hold values that are not finite numbers")


def _check_finite(looked_at: Subject) -> None:
    source = looked_at.source
    bad = [
        name
        for name, tensor in [*source.named_parameters(), *source.named_buffers()]
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} tensors of the {looked_at.title} hold values that are not finite numbers: "
            f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}; load other weights"
        )


def centre_fields(looked_at: Subject, nodes: Mapping[str, str], size: tuple[int, int]) -> dict[str, CentreField]:
    """The theoretical field of the centre unit of each layer; layers behind an operation without a rule miss."""
    graph, dims = looked_at.graph_module, looked_at.dims
    free = intervals(graph, dims, looked_at.image_shape)
    inside = intervals(graph, dims, (2, looked_at.image_shape[1], *size), borders=True, gates_aside=True)
    boxes = {}
    for layer, node in nodes.items():
        if node in free.unknown or node in inside.unknown:
            continue
        wholes = [_centre(free.lines[kind][node]) for kind in ("height", "width")]
        seen = [_centre(inside.lines[kind][node]) for kind in ("height", "width")]
        height, width = (hi - lo + 1 for lo, hi in wholes)
        clipped = any(
            hi - lo + 1 < whole and (lo == 0 or hi == side - 1)
            for (lo, hi), whole, side in zip(seen, (height, width), size, strict=True)
        )
        rows, columns = (slice(lo, hi + 1) for lo, hi in seen)
        boxes[layer] = CentreField(rows, columns, (height, width), clipped)
    return boxes


def _centre(line: Line) -> tuple[int, int]:
    """First and last pixel of the unit in the middle."""
    at = len(line.lo) // 2
    return int(line.lo[at]), int(line.hi[at])
