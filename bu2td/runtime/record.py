"""What a converted network is, beside its modules and its graph: frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx

from bu2td.ir import Optimization, Plan, Stages
from bu2td.options import Options
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
        factory: the word that builds it, where a library knows it.
        model: name of its class.
        num_classes: width of the logits, which `TopDownNetwork.reset_classifier` changes.
        optimization: what `bu2td.optimize` did.
        bu2td, torch: versions that converted it.
        dense: scores of a pixel and kind of head, of a network that `bu2td.dense` made.
    """

    options: Options
    image_shape: tuple[int, int, int, int]
    fingerprint: str
    factory: str | None
    model: str
    num_classes: int
    optimization: Optimization | None = None
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
            "factory": self.factory,
            "model": self.model,
            "num_classes": self.num_classes,
        }
        return data if self.optimization is None else {**data, "optimize": self.optimization.to_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any], optimization: Optimization | None = None) -> Recipe:
        """The inverse of `to_dict`, but for what was done to the network afterwards.

        Raises:
            KeyError, TypeError, OptionError: data are missing, or no options of a conversion.
        """
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["options"].items()}
        names = ("fingerprint", "factory", "model", "num_classes", "bu2td", "torch")
        rest = {name: data[name] for name in names}
        if data.get("dense"):
            num_classes, head = data["dense"]
            rest["dense"] = (num_classes, head)
        return Recipe(Options(**options), tuple(data["image_shape"]), optimization=optimization, **rest)


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


@dataclass(frozen=True)
class Record:
    """What a converted network is.

    Attributes:
        plan: its levels, costs and notes.
        stages: the nodes of its graph.
        recipe: how it is built again.
        pretrained_cfg, default_cfg: those of a timm model, else None.
        checkpointing: what is computed again in the backward pass, if anything is.
    """

    plan: Plan
    stages: Stages
    recipe: Recipe
    pretrained_cfg: Any = None
    default_cfg: Any = None
    checkpointing: Checkpointing | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self

    def with_recipe(self, **changes: Any) -> Record:
        """The record with changes to its recipe."""
        return replace(self, recipe=replace(self.recipe, **changes))
