"""What libraries of models expect of every model that they train: timm's surface.

Where that lists features, they go from fine to coarse, by index: index 0 is the level with the smallest reduction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from bu2td.errors import FusedNetworkError, OptionError, ReductionError
from bu2td.ir import Plan, Stage, Stages
from bu2td.ops import converter_for_type
from bu2td.runtime.heads import HeadTemplate, classifier_name, put_on
from bu2td.runtime.recompute import recomputing, segments_of
from bu2td.runtime.record import Checkpointing, Record

#: Where weights of a bottom-up network are to be had; they are not those of its top-down network.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")


class Surface(fx.GraphModule):
    """Attributes and methods of a network that timm and what is built on it call."""

    record: Record

    @property
    def plan(self) -> Plan:
        """What the network is; ``str(plan)`` is a table."""
        return self.record.plan

    @property
    def stages(self) -> Stages:
        """The nodes of ``graph`` by level, coarse to fine."""
        return self.record.stages

    @property
    def is_fused(self) -> bool:
        """Whether it is optimised for inference, and cannot train."""
        optimization = self.record.recipe.optimization
        return optimization is not None and not optimization.trains

    # -- what it is --------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Width of the logits; 0 without a classifier."""
        return self.record.recipe.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.plan.image_shape[1]

    @property
    def num_features(self) -> int:
        """Channels of what `forward_features` returns: the width of the finest level."""
        return self.plan.levels[-1].width

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the classifier reads."""
        return self._template().hidden(self.record.recipe.global_pool)

    @property
    def global_pool(self) -> str | None:
        """The head's pool: "avg", "max", "avgmax", "catavgmax", "" for none; None where it is another."""
        chosen = self.record.recipe.global_pool
        return self._template().kind() if chosen is None else chosen

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """A dict per level, fine to coarse: channels, reduction, and the module that makes the features."""
        stages = (self.record.checkpointing or self.record).stages
        pairs = zip(reversed(self.plan.levels), reversed(stages.levels), strict=True)
        return [
            {"num_chs": level.width, "reduction": level.reduction, "module": stage.output} for level, stage in pairs
        ]

    @property
    def pretrained_cfg(self) -> Any:
        """The configuration of a timm model, as far as it is its top-down network's; else None.

        Size, mean and standard deviation of images are the bottom-up network's, names of layers this network's;
        where the bottom-up network's weights are is left out.
        """
        return self.record.pretrained_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, config: Any) -> None:
        self.record = replace(self.record, pretrained_cfg=config)

    @property
    def default_cfg(self) -> Any:
        """Another name of ``pretrained_cfg``."""
        return self.record.pretrained_cfg

    @default_cfg.setter
    def default_cfg(self, config: Any) -> None:
        self.pretrained_cfg = config

    # -- parts of a forward ------------------------------------------------------------------------

    def run_until(self, node: str, images: Tensor) -> dict[str, Any]:
        """Run the top graph on images up to a node."""
        raise NotImplementedError

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every level, coarse to fine: (N, C_l, ceil(H / r_l), ceil(W / r_l))."""
        outputs = self.stages.outputs
        values = self.run_until(outputs[-1], x)
        return [values[name] for name in outputs]

    def forward_features(self, x: Tensor) -> Tensor:
        """The output of the finest level."""
        return self.features(x)[-1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The output of the finest level, and those of some levels, fine to coarse.

        Args:
            x: images (N, C, H, W).
            indices: of ``feature_info``; a number: the last, coarsest, so many; by default all.
            norm: is ignored, as in other networks without a norm of their own for every level.
            stop_early: compute no level that is finer than all of those; the first of the results is theirs.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.

        Raises:
            OptionError: another format, or an index without a level.
        """
        if output_fmt != "NCHW":
            raise OptionError(f"output_fmt={output_fmt!r} must be 'NCHW', which all features are")
        outputs = self.stages.outputs[::-1]
        taken = taken_indices(len(outputs), indices)
        last = outputs[min(taken)] if stop_early else outputs[0]
        values = self.run_until(last, x)
        found = [values[outputs[i]] for i in taken]
        return found if intermediates_only else (values[last], found)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the finest level's output, or what the classifier reads."""
        head: Any = self.head
        if not pre_logits:
            return head(x)
        read: list[Tensor] = []
        layer = head.get_submodule(classifier_name(head))
        handle = layer.register_forward_pre_hook(lambda m, args: read.append(args[0]))
        try:
            head(x)
        finally:
            handle.remove()
        [found] = read
        return found.flatten(1) if found.shape[2:] == (1, 1) else found

    # -- the classifier ----------------------------------------------------------------------------

    def get_classifier(self, name_only: bool = False) -> Any:
        """The layer that emits the logits, or its name."""
        head: Any = self.head
        name = classifier_name(head)
        return f"head.{name}" if name_only else head.get_submodule(name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for another number of classes; 0 removes it.

        Args:
            num_classes: how many; a network without a classifier returns what that would read.
            global_pool: "avg", "max", "avgmax" or "catavgmax" in place of the head's pool; "" takes it out, so that
                the network returns a map: the finest level's features, or logits for each of its positions. By
                default it stays as it is.

        Raises:
            OptionError: an unknown pool, a head that has none, or a classifier that is neither linear nor 1x1.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise OptionError(f"num_classes={num_classes!r} must be a whole number, 0 for no classifier")
        template = self._template()
        pool = self.record.recipe.global_pool if global_pool is None else global_pool
        head: Any = self.head
        planned = template.with_classifier(num_classes, pool)
        put_on(head, planned, template.classifier, next(self.parameters(), None))
        record = replace(self.record, head=template)
        self.record = record.with_recipe(num_classes=num_classes, global_pool=pool)

    def _template(self) -> HeadTemplate:
        """The head as it was before the first change; an optimised one is another."""
        head: Any = self.head
        known = self.record.head
        if known is not None and not self.is_fused:
            return known
        return HeadTemplate.of(head, self.num_features)

    # -- training ----------------------------------------------------------------------------------

    @property
    def grad_checkpointing(self) -> bool:
        """Whether levels are computed again in the backward pass."""
        return self.record.checkpointing is not None

    def set_grad_checkpointing(
        self, enable: bool = True, *, levels: Sequence[int] | None = None, inside: bool = False
    ) -> None:
        """Compute the inside of levels again in the backward pass instead of storing it.

        Args:
            enable: whether to.
            levels: reductions of the levels to do so for; by default all, and the head.
            inside: also cut the finest of them into its lateral, the two halves of its merge, and its body, each
                computed again on its own: less memory where that level alone holds most of it. Nothing runs more
                than twice but that lateral, three times in an optimised network.

        Raises:
            ReductionError: the network has no such level.
            FusedNetworkError: it is optimised for inference.
        """
        old = self.record.checkpointing
        if old is not None:
            self.record = replace(self.record, stages=old.stages, checkpointing=None)
            self.graph = recomputing(old.graph, [])
        if not enable:
            return
        if self.is_fused:
            raise FusedNetworkError(
                "this network is optimised for inference: there is no backward pass to save memory for. "
                "Checkpoint the network that it was made of, or bu2td.optimize(td, mode='training')"
            )
        chosen = None if levels is None else tuple(levels)
        if chosen is not None and not (chosen and set(chosen) <= set(self.plan.ladder)):
            raise ReductionError(
                f"levels={levels!r} must name some of the network's reductions {list(self.plan.ladder)}"
            )
        plain = Checkpointing(chosen, inside, self.graph, self.stages)
        self.graph = recomputing(plain.graph, segments_of(self, self.stages, chosen, inside))
        self.record = replace(self.record, stages=plain.stages.within(self.graph), checkpointing=plain)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters in groups for learning rates that rise from the coarsest level to the head.

        Args:
            coarse: a group per level; by default one for every block of its body, and one in front of them for its
                lateral, merge and up-block.
        """
        stages = (self.record.checkpointing or self.record).stages
        found: list[tuple[str, tuple[int, ...]]] = []
        for i, (level, stage) in enumerate(zip(self.plan.levels, stages.levels, strict=True)):
            blocks = [] if coarse or stage.body is None else _blocks(stage, level.blocks, self)
            found += [(pattern, (i, j + 1)) for j, pattern in enumerate(blocks)]
            found.append((rf"^(?:{'|'.join(stage.calls)})\.", (i,) if coarse else (i, 0)))
        return {"stem": r"^(?:prepare|pyramid)", "blocks": found}

    def no_weight_decay(self) -> set[str]:
        """Parameters that the bottom-up network wants no weight decay for."""
        names = {name for name, _ in self.named_parameters()}
        return names & set(self.record.no_weight_decay)

    def set_drop_path(self, rate: float) -> None:
        """Set how often paths are dropped in training.

        The most dropped path is dropped at this rate, the others as much less as when the network was converted: as
        if the bottom-up network had been built with this rate.

        Args:
            rate: in [0, 1).

        Raises:
            OptionError: a rate out of its range, or there is nothing that drops paths.
        """
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise OptionError(f"the rate {rate!r} of dropped paths must be at least 0 and less than 1")
        known = dict(self.record.drop_path) or _drop_rates(self)
        largest = max(known.values(), default=0.0)
        if not largest:
            if rate:
                raise OptionError(
                    "nothing in this network drops paths; build the bottom-up network with a rate above 0 "
                    "(drop_path_rate, in timm), which puts the layers in"
                )
            return
        for name, was in known.items():
            module: Any = self.get_submodule(name)
            setattr(module, str(_rate_attribute(module)), rate * was / largest)
        self.record = replace(self.record, drop_path=tuple(known.items()))


def taken_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices of features, 0 to ``count`` - 1.

    Args:
        count: how many there are.
        indices: a number: the last so many; negative ones count from the end; None: all.

    Raises:
        OptionError: an index without features, or none.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        asked: list[Any] = list(range(count - indices, count)) if 0 < indices <= count else []
    else:
        asked = [index + count if isinstance(index, int) and index < 0 else index for index in indices]
    if not asked or not all(isinstance(index, int) and 0 <= index < count for index in asked):
        raise OptionError(
            f"the indices of features {indices!r} must be some of 0 to {count - 1}, or how many of the last"
        )
    return asked


def described(config: Any, network: Surface) -> Any:
    """The configuration of a bottom-up network as that of its top-down network.

    Returns:
        A new dict; what is no mapping is None.
    """
    if not isinstance(config, Mapping):
        return None
    kept = {key: value for key, value in config.items() if key not in (*_SOURCES, "test_pool_size")}
    plan = network.plan
    height, width = plan.image_shape[2:]
    finest = plan.ladder[-1]
    pool = (math.ceil(height / finest), math.ceil(width / finest))
    changes = {
        "custom_load": False,
        "pool_size": pool,
        "first_conv": _first_convolutions(network),
        "classifier": network.get_classifier(name_only=True),
    }
    return {**kept, **{key: value for key, value in changes.items() if key in config}}


def _first_convolutions(network: Surface) -> tuple[str, ...]:
    """The convolutions that read the image."""
    found = []
    for stage in network.stages.levels:
        reader = stage.lateral or stage.body
        modules = network.get_submodule(str(reader)).named_modules(prefix=str(reader))
        found.append(next((name for name, module in modules if isinstance(module, nn.Conv2d)), None))
    return tuple(name for name in found if name is not None)


def _blocks(stage: Stage, names: Sequence[str], network: nn.Module) -> list[str]:
    """Patterns of the parameters of each block in a level's body, in the order of the blocks."""
    body = str(stage.body)
    own = [name for name, _ in network.get_submodule(body).named_parameters()]
    return [
        rf"^{body}\.{re.escape(name)}\."
        for name in names
        if any(parameter.startswith(f"{name}.") for parameter in own)
    ]


def _rate_attribute(module: nn.Module) -> str | None:
    converter = converter_for_type(type(module))
    return None if converter is None else converter.path_rate(module)


def _drop_rates(network: nn.Module) -> dict[str, float]:
    """How often each module drops paths, of those that do."""
    found = {name: (module, _rate_attribute(module)) for name, module in network.named_modules()}
    return {name: float(getattr(module, rate)) for name, (module, rate) in found.items() if rate is not None}
