"""Top-down networks that end in maps: the levels of a converted network behind another head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bu2td.errors import OptimizeError, OptionError, ReductionError, nearest
from bu2td.ir import Stages
from bu2td.nn import ConvUnit, Upsample
from bu2td.options import as_count
from bu2td.runtime.network import TopDownNetwork

#: What the maps of a network of features are called.
FeatureNames: TypeAlias = Literal["numbers", "modules", "none"]

#: What may stand behind the levels of a dense network.
DENSE_HEADS = ("conv", "fpn")


class DenseHead(nn.Module):
    """Scores for every pixel, of the features of levels.

    With several levels every one goes through a 1x1 convolution to the finest one's width; from coarse to fine each
    is upsampled to the next and added to it (Lin et al., 2017). Then a 3x3 convolution, batch norm and ReLU, and a
    1x1 convolution to the classes. Batch norm also takes the place of a norm that the converted network has behind
    its last block alone.

    Args:
        widths: of the levels, coarse to fine.
        num_classes: scores of a pixel.
        resize: whether the scores are brought to the size of an image, bilinearly.
        upsample: mode from level to level.

    Shapes: (N, C_l, ceil(H / r_l), ceil(W / r_l)) for every level, coarse to fine, and with ``resize`` (N, C, H, W)
    -> (N, num_classes, H, W).
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, *, resize: bool = False, upsample: str = "nearest"
    ) -> None:
        super().__init__()
        width = widths[-1]
        if len(widths) > 1:
            self.laterals = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)
            self.up = Upsample(upsample)
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.unit = ConvUnit(conv, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier: nn.Module = nn.Conv2d(width, num_classes, 1)
        self.levels, self.num_classes, self.resize = len(widths), num_classes, resize

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the scores of all pixels."""
        scores = self.scores(inputs[: self.levels])
        if not self.resize:
            return scores
        return F.interpolate(scores, size=inputs[-1].shape[-2:], mode="bilinear", align_corners=False)

    def scores(self, maps: Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Return the scores of the finest level's positions, or what the classifier reads."""
        x = maps[-1]
        if self.levels > 1:
            x = self.laterals[0](maps[0])
            for lateral, finer in zip(list(self.laterals)[1:], maps[1:], strict=True):
                x = lateral(finer) + self.up(x, finer)
        x = self.unit(x)
        return x if pre_logits else self.classifier(x)


class Maps(nn.Module):
    """Maps as they are.

    Args:
        names: of the maps, fine to coarse; None: they have none.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        super().__init__()
        self.names = None if names is None else tuple(names)

    def forward(self, *maps: Tensor) -> OrderedDict[str, Tensor] | list[Tensor]:
        """Return the maps, which are given coarse to fine, fine to coarse: by name, or as a list."""
        found = list(reversed(maps))
        return found if self.names is None else OrderedDict(zip(self.names, found, strict=True))


class HeadedNetwork(TopDownNetwork):
    """A converted network with another head, which reads several levels.

    Everything of a `TopDownNetwork` but what belongs to a classifier of whole images.
    """

    @property
    def reductions(self) -> tuple[int, ...]:
        """Reductions of the levels that the head reads, coarse to fine."""
        head = next(node for node in self.graph.nodes if node.name == self.stages.head)
        read = {node.name for node in head.all_input_nodes}
        return tuple(stage.reduction for stage in self.stages.levels if stage.output in read)


class FeatureNetwork(HeadedNetwork):
    """The levels of a converted network: ``forward`` returns their maps, fine to coarse, by name or as a list."""

    _info: Any = None

    @property
    def feature_info(self) -> Any:
        """What is known of the features; by default a dict per level, as that of `TopDownNetwork`."""
        return super().feature_info if self._info is None else self._info

    @feature_info.setter
    def feature_info(self, info: Any) -> None:
        self._info = info

    @property
    def recipe(self) -> dict[str, Any]:
        """Refuse: a file of recipe and weights holds a network with a head.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "a network of features has no recipe, so that bu2td.save cannot write it; save the network that its "
            "levels belong to, or its state_dict()"
        )

    @property
    def num_classes(self) -> int:
        """None."""
        return 0

    @property
    def global_pool(self) -> str:
        """None."""
        return ""

    @property
    def head_hidden_size(self) -> int:
        """Channels of the finest map."""
        return self.num_features

    def get_classifier(self, name_only: bool = False) -> Any:
        """Nothing: there is none."""
        return "" if name_only else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Refuse.

        Raises:
            OptionError: always.
        """
        raise OptionError("a network of features has no classifier")

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """Return what is given."""
        return x


class PixelNetwork(HeadedNetwork):
    """A converted network that scores every pixel, as `bu2td.dense` returns it.

    ``forward`` maps images (N, C, H, W) to (N, num_classes, H, W), whatever the finest level's reduction. It is a
    `TopDownNetwork` with another head: `features`, `forward_branches`, `set_grad_checkpointing`, `bu2td.optimize`
    and the rest are as there.

    Attributes:
        head: a `DenseHead`.
    """

    @property
    def _dense(self) -> DenseHead:
        head: Any = self.head
        return head

    @property
    def num_classes(self) -> int:
        """Scores of a pixel."""
        return self._dense.num_classes

    @property
    def global_pool(self) -> str:
        """None: pixels are not pooled."""
        return ""

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the classifier reads."""
        conv: Any = self._dense.classifier
        return int(conv.in_channels)

    @property
    def head_kind(self) -> str:
        """One of `DENSE_HEADS`."""
        return "fpn" if self._dense.levels > 1 else "conv"

    def forward_head(self, x: Tensor | Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Scores of the finest level's positions, of its features, or with the head "fpn" of all `features`.

        Raises:
            OptionError: maps are missing.
        """
        maps = [x] if isinstance(x, Tensor) else list(x)[-self._dense.levels :]
        if len(maps) != self._dense.levels:
            raise OptionError(
                f"the head reads {self._dense.levels} levels, found {len(maps)}; give it the list that "
                f"features(images) returns"
            )
        return self._dense.scores(maps, pre_logits)

    def get_classifier(self, name_only: bool = False) -> Any:
        """The 1x1 convolution that emits the scores, or its name."""
        return "head.classifier" if name_only else self._dense.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for another number of classes.

        Raises:
            OptionError: no number of classes, or a pool, which a dense network has not.
        """
        as_count("num_classes", num_classes)
        if global_pool not in (None, ""):
            raise OptionError(f"global_pool={global_pool!r}: a dense network scores every pixel, and pools nothing")
        head = self._dense
        weight = head.unit.conv.weight
        assert isinstance(weight, Tensor)
        head.classifier = nn.Conv2d(weight.shape[0], num_classes, 1, device=weight.device, dtype=weight.dtype)
        head.num_classes = num_classes
        self.record = self.record.with_recipe(dense=(num_classes, self.head_kind))


def check_head(head: Any) -> None:
    """Refuse an unknown head.

    Raises:
        OptionError: it is none of `DENSE_HEADS`.
    """
    if head not in DENSE_HEADS:
        known = " or ".join(map(repr, DENSE_HEADS))
        raise OptionError(f"head={head!r} is unknown; it must be {known}.{nearest(str(head), DENSE_HEADS)}")


def pixel_network(network: TopDownNetwork, num_classes: int, head: str = "conv") -> PixelNetwork:
    """A dense network of the levels of a converted one, which it shares.

    Args:
        network: in any mode; its own head is left out.
        num_classes: scores of a pixel.
        head: "conv" reads the finest level, "fpn" all levels.

    Raises:
        OptionError: an unknown head, or no number of classes.
        OptimizeError: the network is optimised for inference.
    """
    check_head(head)
    as_count("num_classes", num_classes)
    levels = network.plan.levels[-1:] if head == "conv" else network.plan.levels
    plan = network.plan
    upsample = plan.options.upsample if plan.options.upsample in ("nearest", "bilinear") else "nearest"
    # What prepares the image may round its size up.
    resize = plan.levels[-1].reduction > 1 or plan.input is not None
    like = next(network.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(((plan.options.seed or 0) + 1) % 2**63)  # not the numbers that the levels started from
        made = DenseHead([level.width for level in levels], num_classes, resize=resize, upsample=upsample)
    made.to(like.device, like.dtype)
    dense = _with_head(network, made, [level.reduction for level in levels], resize, PixelNetwork)
    dense.record = dense.record.with_recipe(dense=(num_classes, head))
    return dense


def feature_network(
    network: TopDownNetwork, reductions: Sequence[int], names: FeatureNames = "numbers"
) -> FeatureNetwork:
    """The levels of a converted network up to the finest that is asked for, which it shares.

    Finer levels than all of them are not computed, and have no parameters. The others have the modules, and
    the names of parameters, of the network that it was made of.

    Args:
        network: in any mode.
        reductions: of the levels whose maps it returns.
        names: of the maps: "numbers", "0" for the finest, as torchvision's detectors have them; "modules", those of
            what makes them; "none": it returns a list.

    Raises:
        ReductionError: the network has no such levels.
        OptimizeError: it is optimised for inference.
    """
    ladder = network.plan.ladder
    wanted = sorted(set(reductions), reverse=True)
    if not wanted or not set(wanted) <= set(ladder):
        raise ReductionError(f"reductions={list(reductions)} must name some of the network's levels {list(ladder)}")
    stages = (network.record.checkpointing or network.record).stages
    made = [stage.output for stage in reversed(stages.levels) if stage.reduction in wanted]
    known = {"numbers": [str(i) for i in range(len(made))], "modules": made, "none": None}
    return _with_head(network, Maps(known[names]), wanted, False, FeatureNetwork)


def _with_head(
    network: TopDownNetwork, head: nn.Module, reductions: Sequence[int], image: bool, kind: type[Any]
) -> Any:
    """A network with another head, which reads levels, and the image behind them."""
    if network.is_fused:
        raise OptimizeError(
            "this network is optimised for inference and cannot train, but what reads its levels must; take the "
            "network that it was made of, and optimise the new one"
        )
    record = network.record
    graph, stages = _rewired(network, reductions, image)
    count = len(stages.levels)
    plan = replace(record.plan, levels=record.plan.levels[:count])
    headed = kind(network, graph, replace(record, plan=plan, stages=stages, checkpointing=None), kind.__name__)
    headed.head = head
    headed.train(network.training)
    if network.checkpointing is not None:
        headed.set_grad_checkpointing(**network.checkpointing)
    return headed


def _rewired(network: TopDownNetwork, reductions: Sequence[int], image: bool) -> tuple[fx.Graph, Stages]:
    """The graph of a network whose head reads levels; finer ones are gone."""
    plain = network.record.checkpointing or network.record
    old = plain.graph if network.record.checkpointing else network.graph  # type: ignore[union-attr]
    graph = fx.Graph()
    result = graph.graph_copy(old, {})
    graph.output(result)
    nodes = {node.name: node for node in graph.nodes}
    levels = plain.stages.levels
    read = [nodes[stage.output] for stage in levels if stage.reduction in reductions]
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    nodes[plain.stages.head].args = (*read, *([placeholder] if image else []))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    kept = tuple(stage for stage in levels if stage.reduction >= min(reductions))
    return graph, replace(plain.stages, levels=kept)
