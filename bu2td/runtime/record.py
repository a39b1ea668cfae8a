"""What a converted network is, beside its modules and its graph: frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx

from bu2td.ir import Optimization, Plan, Stages
from bu2td.models import Call, Origin
from bu2td.nn import PackedGraph
from bu2td.options import Options
from bu2td.runtime.heads import HeadTemplate
from bu2td.version import __version__

#: Opens every recipe; another number for files that this version cannot read.
FORMAT = "bu2td.recipe.1"


@dataclass(frozen=True)
class Recipe:
    """What `bu2td.load` needs to build a network again.

    Attributes:
        options: of the conversion.
        image_shape: (N, C, H, W) that the bottom-up network was looked at with.
        fingerprint: of its captured graph.
        call: that builds it, as far as that is known.
        model: name of its class.
        num_classes, global_pool: width of the logits, and the head's pool where it is not the one that was
            converted, which `TopDownNetwork.reset_classifier` changes.
        optimization: what `bu2td.optimize` did.
        identity: of the captured graph with the settings of its layers; empty in old files.
        why: why no call is known.
        bu2td, torch: versions that converted it.
        dense: scores of a pixel and kind of head, of a network that `bu2td.dense` made.
    """

    options: Options
    image_shape: tuple[int, int, int, int]
    fingerprint: str
    call: Call | None
    model: str
    num_classes: int
    optimization: Optimization | None = None
    global_pool: str | None = None
    identity: str = ""
    why: str = ""
    bu2td: str = __version__
    torch: str = str(torch.__version__)
    dense: tuple[int, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, as saved files keep it."""
        data: dict[str, Any] = {
            "format": FORMAT,
            **({} if self.dense is None else {"dense": [*self.dense]}),
            "bu2td": self.bu2td,
            "torch": self.torch,
            "options": asdict(self.options),
            "image_shape": list(self.image_shape),
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "factory": self.call.word if self.call else None,
            "arguments": self.call.given if self.call else {},
            "model": self.model,
            "num_classes": self.num_classes,
        }
        if self.global_pool is not None:
            data["global_pool"] = self.global_pool
        if self.why:
            data["why"] = self.why
        return data if self.optimization is None else {**data, "optimize": self.optimization.to_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any], optimization: Optimization | None = None) -> Recipe:
        """The inverse of `to_dict`, but for what was done to the network afterwards.

        Raises:
            KeyError, TypeError, OptionError: data are missing, or no options of a conversion.
        """
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["options"].items()}
        names = ("fingerprint", "model", "num_classes", "bu2td", "torch")
        rest = {name: data[name] for name in names}
        rest |= {name: data[name] for name in ("identity", "why", "global_pool") if name in data}
        if data.get("dense"):
            num_classes, head = data["dense"]
            rest["dense"] = (num_classes, head)
        word = data["factory"]
        call = None if word is None else Call.of(word, data.get("arguments", {}))
        shape = tuple(data["image_shape"])
        return Recipe(Options(**options), shape, call=call, optimization=optimization, **rest)


@dataclass(frozen=True)
class Checkpointing:
    """Which levels are computed again in the backward pass (see `TopDownNetwork.set_grad_checkpointing`).

    Attributes:
        levels, inside: what was asked for.
        graph, stages: those of the network without it; never changed.
    """

    levels: tuple[int, ...] | None
    inside: bool
    graph: fx.Graph
    stages: Stages

    def __reduce__(self) -> Any:
        return _checkpointing, (self.levels, self.inside, PackedGraph.of(self.graph), self.stages)


def _checkpointing(levels: Any, inside: bool, packed: PackedGraph, stages: Stages) -> Checkpointing:
    """The inverse of its pickle."""
    return Checkpointing(levels, inside, packed.graph(), stages)


@dataclass(frozen=True)
class Record:
    """What a converted network is.

    Attributes:
        plan: its levels, costs and notes.
        stages: the nodes of its graph.
        recipe: how it is built again.
        origin: what the bottom-up model showed of how it was made.
        pretrained_cfg: of a timm model (see `Surface.pretrained_cfg`), else None.
        no_weight_decay: parameters that the bottom-up network wants none for.
        checkpointing: what is computed again in the backward pass, if anything is.
        head: as it was converted, once its classifier has been reset.
        drop_path: how often paths were dropped when it was converted, by module, once that has been set.
    """

    plan: Plan
    stages: Stages
    recipe: Recipe
    origin: Origin
    pretrained_cfg: Any = None
    no_weight_decay: tuple[str, ...] = ()
    checkpointing: Checkpointing | None = None
    head: HeadTemplate | None = None
    drop_path: tuple[tuple[str, float], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self

    def with_recipe(self, **changes: Any) -> Record:
        """The record with changes to its recipe."""
        return replace(self, recipe=replace(self.recipe, **changes))
