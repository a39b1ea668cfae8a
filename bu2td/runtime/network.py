"""The result of a conversion: a live top-down network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from bu2td.errors import FusedNetworkError, OptionError, ReductionError, nearest
from bu2td.ir import Optimization, Plan, Stages
from bu2td.nn import Part, Pyramid
from bu2td.ops import Role, converter_for_type
from bu2td.runtime.recompute import recomputing, segments_of
from bu2td.runtime.record import Checkpointing, Record
from bu2td.runtime.sharing import Shared


class TopDownNetwork(Part, Shared):
    """A top-down network, as `bu2td.convert` returns it: an ordinary, trainable `torch.nn.Module`.

    ``forward`` maps images (N, C, H, W) of any size from about 32 px up (unless ``plan.notes`` name layers that
    are bound to some) to logits (N, num_classes), in train and in eval mode. ``code`` is the Python source of
    the top level. Submodules are the pyramid, for every reduction R ``rR_lateral``, ``rR_transition``,
    ``rR_up``, ``rR_merge`` and the level ``rR``, and the head; ``stages`` says which of them there are.

    Attributes:
        record: what the network is, all in one; the properties below read it.
    """

    record: Record

    def __init__(self, root: Any, graph: fx.Graph, record: Record, class_name: str = "TopDownNetwork") -> None:
        super().__init__(root, graph, class_name)
        self.record = record

    @property
    def plan(self) -> Plan:
        """What the network is; ``str(plan)`` is a table."""
        return self.record.plan

    @property
    def stages(self) -> Stages:
        """The nodes of ``graph`` by level, coarse to fine."""
        return self.record.stages

    @property
    def recipe(self) -> dict[str, Any]:
        """What `bu2td.load` needs to build it again."""
        return self.record.recipe.to_dict()

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.record.recipe.num_classes

    @property
    def pretrained_cfg(self) -> Any:
        """That of a timm model, else None."""
        return self.record.pretrained_cfg

    @property
    def default_cfg(self) -> Any:
        """That of a timm model, else None."""
        return self.record.default_cfg

    @property
    def optimization(self) -> Optimization | None:
        """What `bu2td.optimize` did to it."""
        return self.record.recipe.optimization

    @property
    def is_fused(self) -> bool:
        """Whether it is optimised for inference, and cannot train."""
        return self.optimization is not None and not self.optimization.trains

    @property
    def grad_checkpointing(self) -> bool:
        """Whether levels are computed again in the backward pass."""
        return self.record.checkpointing is not None

    @property
    def checkpointing(self) -> dict[str, Any] | None:
        """The options of that, as `set_grad_checkpointing` takes them."""
        chosen = self.record.checkpointing
        if chosen is None:
            return None
        return {"levels": None if chosen.levels is None else list(chosen.levels), "inside": chosen.inside}

    def train(self, mode: bool = True) -> Any:
        """Set train or eval mode.

        Raises:
            FusedNetworkError: the network is optimised for inference, and cannot train.
        """
        if mode and self.is_fused:
            raise FusedNetworkError(
                "this network is optimised for inference: its norms are folded into its convolutions, so that it "
                "cannot train. Train the network that it was made of, or bu2td.optimize(td, mode='training')"
            )
        return super().train(mode)

    @property
    def code(self) -> str:
        """Python source of the top level."""
        return super().code.strip() + "\n"

    # -- running parts of it -----------------------------------------------------------------------

    def run_until(self, node: str, images: Tensor) -> dict[str, Any]:
        """Run the top graph on images up to a node.

        Args:
            node: one of ``graph``, such as ``stages.levels[0].output``.
            images: (N, C, H, W).

        Returns:
            Every value on the way, that of the node included, by the name of its node.

        Raises:
            OptionError: the graph has no such node.
        """
        placeholder = next(n.name for n in self.graph.nodes if n.op == "placeholder")
        return self.run_from(placeholder, {placeholder: images}, node)

    def run_from(self, node: str, values: Mapping[str, Any], until: str | None = None) -> dict[str, Any]:
        """Run what is behind a node of the top graph.

        Args:
            node: nothing up to it, itself included, is run.
            values: by node what the rest reads of that; nodes behind it that have a value are not run either.
            until: the last node to run; by default that of the logits.

        Returns:
            The values, and every value that was computed, by the name of its node.

        Raises:
            OptionError: the graph has no such node, or the rest reads a node that has no value.
        """
        known, last = dict(values), self.stages.head if until is None else until
        nodes = {n.name: n for n in self.graph.nodes if n.op != "output"}
        order = list(nodes)
        for name in (node, last):
            if name not in nodes:
                close = nearest(str(name), order)
                raise OptionError(f"the top graph has no node {name!r}; td.stages and td.graph name them.{close}")
        for name in order[order.index(node) + 1 : order.index(last) + 1]:
            if name in known:
                continue
            missing = [n.name for n in nodes[name].all_input_nodes if n.name not in known]
            if missing:
                raise OptionError(f"node {name!r} reads {', '.join(missing)}, of which values holds none; add it")
            known[name] = self._value(nodes[name], known)
        return known

    def _value(self, node: fx.Node, known: Mapping[str, Any]) -> Any:
        args = fx.map_arg(node.args, lambda n: known[n.name])
        kwargs = fx.map_arg(node.kwargs, lambda n: known[n.name])
        if callable(node.target):
            return node.target(*args, **kwargs)
        part = self.get_submodule(node.target)
        return part if node.op == "get_attr" else part(*args, **kwargs)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every level, coarse to fine: (N, C_l, ceil(H / r_l), ceil(W / r_l))."""
        outputs = self.stages.outputs
        values = self.run_until(outputs[-1], x)
        return [values[name] for name in outputs]

    def forward_features(self, x: Tensor) -> Tensor:
        """The output of the finest level (timm's interface)."""
        return self.features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the finest level's output, or what the classifier reads (timm's interface)."""
        head: Any = self.head
        if not pre_logits:
            return head(x)
        target = self._classifier_name()
        read: list[Tensor] = []
        handle = head.get_submodule(target).register_forward_pre_hook(lambda m, args: read.append(args[0]))
        try:
            head(x)
        finally:
            handle.remove()
        return read[0]

    def forward_branches(self, images: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """Logits when every level of the pyramid sees an image of its own.

        Args:
            images: one full-resolution image batch (N, C, H, W) per level, as a list coarse to fine or as a
                dict {reduction: images}; each is reduced by its level as the pyramid would.

        Raises:
            ReductionError: images are missing, or name reductions that the network does not have.
            OptionError: the images differ in shape.
            ImageSizeError: layers are bound to another image size.
        """
        ladder = self.plan.ladder
        if isinstance(images, Mapping):
            if set(images) != set(ladder):
                raise ReductionError(
                    f"forward_branches needs an image for each of the reductions {list(ladder)}, found "
                    f"{sorted(images, reverse=True)}"
                )
            images = [images[r] for r in ladder]
        if len(images) != len(ladder):
            raise ReductionError(
                f"forward_branches needs {len(ladder)} images, coarse to fine for the reductions "
                f"{list(ladder)}, found {len(images)}"
            )
        if len({tuple(image.shape) for image in images}) != 1:
            raise OptionError(f"all images must have one shape, found {[tuple(image.shape) for image in images]}")
        pyramid: Any = self.pyramid
        assert isinstance(pyramid, Pyramid)
        pyramid.check(images[0])
        if self.plan.input is not None:
            prepare: Any = self.prepare
            images = [prepare(image) for image in images]
        reduced = tuple(pyramid.reduce(image, r) for image, r in zip(images, ladder, strict=True))
        return self.run_from(self.stages.pyramid, {self.stages.pyramid: reduced})[self.stages.head]

    # -- timm's surface ----------------------------------------------------------------------------

    def _classifier_name(self) -> str:
        head: Any = self.head
        names: list[str] = []
        for target in (str(n.target) for n in head.graph.nodes if n.op == "call_module"):
            part = head.get_submodule(target)
            converter = converter_for_type(type(part))
            whole = converter is not None and converter.role == Role.HEAD  # its classifier is inside
            for name, module in part.named_modules(prefix=target) if whole else [(target, part)]:
                if isinstance(module, nn.Linear | nn.Conv2d | nn.Identity):
                    names.append(name)
        return names[-1]

    def get_classifier(self) -> nn.Module:
        """The layer that emits the logits."""
        head: Any = self.head
        return head.get_submodule(self._classifier_name())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for another number of classes; 0 removes it.

        Raises:
            OptionError: another global pool is asked for, or the classifier is neither linear nor 1x1.
        """
        if global_pool not in (None, "", "avg"):
            raise OptionError(f"global_pool={global_pool!r}: the pool of a converted network stays as it is")
        old = self.get_classifier()
        head: Any = self.head
        new: nn.Module
        if num_classes == 0:
            new = nn.Identity()
        elif isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        elif isinstance(old, nn.Conv2d) and self._followed_by_no_weights(head):
            bias = old.bias is not None
            new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, padding=old.padding, bias=bias)  # type: ignore[arg-type]
        else:
            raise OptionError(
                f"the classifier {type(old).__name__} cannot be replaced; convert the bottom-up network with "
                f"{num_classes} classes instead"
            )
        weight = next(old.parameters(), None)
        if weight is not None:
            new = new.to(weight.device, weight.dtype)
        parent, _, name = self._classifier_name().rpartition(".")
        setattr(head.get_submodule(parent), name, new)
        self.record = self.record.with_recipe(num_classes=num_classes)

    def _followed_by_no_weights(self, head: Any) -> bool:
        nodes = [str(n.target) for n in head.graph.nodes if n.op == "call_module"]
        behind = nodes[nodes.index(self._classifier_name()) + 1 :]
        return not any(list(head.get_submodule(n).parameters()) for n in behind)

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
        """Parameter groups by level for layer-wise learning rates (timm's interface)."""
        stages = (self.record.checkpointing or self.record).stages
        levels = [rf"^(?:{'|'.join(stage.calls)})\." for stage in stages.levels]
        return {"stem": r"^(prepare|pyramid)", "blocks": [(level, (i,)) for i, level in enumerate(levels)]}
