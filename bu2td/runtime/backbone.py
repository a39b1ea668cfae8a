"""A converted network without its head: the features of some of its levels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import fx

from bu2td.errors import FusedNetworkError
from bu2td.graph import ending_in
from bu2td.ir import Stages
from bu2td.runtime.network import TopDownNetwork
from bu2td.runtime.recompute import recomputing, segments_of
from bu2td.runtime.surface import taken_indices


class Backbone(fx.GraphModule):
    """The features of some levels of a top-down network, as a module: (N, C, H, W) -> a list, fine to coarse.

    Levels that are finer than all of them are not computed, and have no parameters. The others have the modules,
    and the names of parameters, of the network that it was made of.

    Args:
        network: a converted network; its modules are shared, not copied.
        indices: of its ``feature_info``; a number: the last, coarsest, so many; None: all.
        names: return a dict with the names of the modules that make the features instead of a list.

    Attributes:
        out_indices: which of ``feature_info`` it returns.
        feature_info: a dict per level of the network, fine to coarse.
        stages: the nodes of the levels that it computes, coarse to fine.

    Raises:
        OptionError: an index without a level.
    """

    def __init__(
        self, network: TopDownNetwork, indices: int | Sequence[int] | None = None, names: bool = False
    ) -> None:
        record = network.record
        plain = record.checkpointing or record
        graph = network.graph if record.checkpointing is None else record.checkpointing.graph
        taken = taken_indices(len(network.plan.ladder), indices)
        levels = plain.stages.levels[: len(plain.stages.levels) - min(taken)]
        info = network.feature_info
        outputs = [info[index]["module"] for index in taken]
        super().__init__(network, ending_in(graph, outputs, names), "Backbone")
        self.stages = Stages(plain.stages.pyramid, levels, "")
        self.out_indices, self.feature_info = tuple(taken), info
        self.num_classes, self.in_chans = 0, network.in_chans
        self.is_fused, self.plain = network.is_fused, self.graph
        self.pretrained_cfg = self.default_cfg = network.pretrained_cfg
        self.training = network.training

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        new: Any = super().__deepcopy__(memo)
        type(new).__name__ = type(self).__name__  # every GraphModule is of a class of its own
        for name, value in vars(self).items():
            if name not in vars(new):
                vars(new)[name] = value if name in ("plain", "stages") else copy.deepcopy(value, memo)
        new.training = self.training
        return new

    @property
    def grad_checkpointing(self) -> bool:
        """Whether levels are computed again in the backward pass."""
        return self.graph is not self.plain

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the inside of levels again in the backward pass instead of storing it.

        Raises:
            FusedNetworkError: it is optimised for inference.
        """
        if enable and self.is_fused:
            raise FusedNetworkError("this network is optimised for inference: there is no backward pass")
        if not enable:
            self.graph = self.plain
            return
        levels = [stage.reduction for stage in self.stages.levels]
        self.graph = self.plain
        self.graph = recomputing(self.plain, segments_of(self, self.stages, levels, False))
