"""The result of a conversion: a live top-down network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from bu2td.errors import Bu2tdError, FusedNetworkError, OptionError, ReductionError
from bu2td.ir.plan import Plan
from bu2td.nn import Pyramid
from bu2td.ops.registry import converter_for_type
from bu2td.ops.roles import Role
from bu2td.runtime.recompute import Piece, pieces, recomputing, whole

_EXTRAS = (
    *("plan", "recipe", "num_classes", "pretrained_cfg", "default_cfg"),
    *("grad_checkpointing", "checkpointing", "plain_graph", "optimization"),
)


class TopDownNetwork(fx.GraphModule):
    """A top-down network, as `bu2td.convert` returns it: an ordinary, trainable `torch.nn.Module`.

    ``forward`` maps images (N, C, H, W) of any size from about 32 px up (unless ``plan.notes`` name layers that
    are bound to some) to logits (N, num_classes), in train and in eval mode. ``code`` is the Python source of
    the top level. Submodules are the pyramid, for every reduction R ``rR_lateral``, ``rR_transition``,
    ``rR_up``, ``rR_merge`` and the level ``rR``, and the head.

    Attributes:
        plan: what the network is (`bu2td.ir.plan.Plan`); ``str(plan)`` is a table.
        recipe: what `bu2td.load` needs to build it again.
        num_classes: width of the logits.
        pretrained_cfg, default_cfg: those of a timm model, else None.
        grad_checkpointing: whether levels are computed again in the backward pass.
        checkpointing: the options of that (see `set_grad_checkpointing`), else None.
        plain_graph: the graph without that; None where ``graph`` is that graph.
        optimization: what `bu2td.optimize` did to it (`bu2td.optimization.record.Optimization`), else None.
    """

    plan: Plan
    recipe: dict[str, Any]
    num_classes: int
    pretrained_cfg: Any
    default_cfg: Any
    grad_checkpointing: bool
    checkpointing: dict[str, Any] | None = None
    plain_graph: fx.Graph | None = None
    optimization: Any = None

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "TopDownNetwork") -> None:
        super().__init__(root, graph, class_name)
        self.grad_checkpointing = False

    def __deepcopy__(self, memo: dict[int, Any]) -> TopDownNetwork:
        new: Any = super().__deepcopy__(memo)
        for name in _EXTRAS:
            if name in self.__dict__:
                new.__dict__[name] = self.__dict__[name]
        new.training = self.training
        type(new).__name__ = type(self).__name__  # every GraphModule is of a class of its own
        return new

    def __reduce__(self) -> Any:
        raise Bu2tdError(
            "a top-down network is not pickled; bu2td.save(td, file) writes its recipe and weights, and "
            "torch.save(td.state_dict(), file) the weights alone"
        )

    def train(self, mode: bool = True) -> Any:
        """Set train or eval mode.

        Raises:
            FusedNetworkError: the network is optimised for inference, and cannot train.
        """
        if mode and self.optimization is not None and self.optimization.mode == "inference":
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

    def _run(self, values: dict[str, Any], until: str | None = None, after: str | None = None) -> dict[str, Any]:
        """Execute the top graph, or what is behind a node, from given values by node name; returns all values."""
        nodes = list(self.graph.nodes)
        start = 0 if after is None else [node.name for node in nodes].index(after) + 1
        for node in nodes[start:]:
            if node.name not in values and node.op != "output":
                args = fx.map_arg(node.args, lambda n: values[n.name])
                kwargs = fx.map_arg(node.kwargs, lambda n: values[n.name])
                if node.op == "call_function":
                    values[node.name] = node.target(*args, **kwargs)
                else:
                    part = self.get_submodule(str(node.target))
                    values[node.name] = part if node.op == "get_attr" else part(*args, **kwargs)
            if node.name == until:
                break
        return values

    def _level_nodes(self) -> list[str]:
        """The node that holds the output of every level, coarse to fine."""
        last: dict[str, str] = {}
        names = [level.name for level in self.plan.levels]
        for node in self.graph.nodes:
            owner = node.name.partition("_")[0]
            if owner in names and node.op != "get_attr":
                last[owner] = node.name
        return [last[name] for name in names]

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every level, coarse to fine: (N, C_l, ceil(H / r_l), ceil(W / r_l))."""
        nodes = self._level_nodes()
        values = self._run({"x": x}, until=nodes[-1])
        return [values[name] for name in nodes]

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
        values = self._run({"x": images[-1], "prepare": images[-1], "pyramid": reduced})
        return values[self._output_node()]

    def _output_node(self) -> str:
        output = next(n for n in reversed(self.graph.nodes) if n.op == "output")
        return output.args[0].name

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
        self.num_classes = num_classes
        self.recipe = {**self.recipe, "num_classes": num_classes}

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
        if self.plain_graph is not None:
            plain, self.plain_graph = self.plain_graph, None
            self.graph = recomputing(plain, [])
        self.grad_checkpointing, self.checkpointing = False, None
        if enable:
            segments = self._segments(levels, inside)
            self.plain_graph, self.graph = self.graph, recomputing(self.graph, segments)
            self.grad_checkpointing, self.checkpointing = True, {"levels": levels, "inside": inside}

    def _segments(self, levels: Sequence[int] | None, inside: bool) -> list[list[Piece]]:
        known = self.plan.ladder
        if self.optimization is not None and self.optimization.mode == "inference":
            raise FusedNetworkError(
                "this network is optimised for inference: there is no backward pass to save memory for. "
                "Checkpoint the network that it was made of, or bu2td.optimize(td, mode='training')"
            )
        wanted = known if levels is None else tuple(levels)
        if not wanted or not set(wanted) <= set(known):
            raise ReductionError(f"levels={levels!r} must name some of the network's reductions {list(known)}")
        calls = [node for node in self.graph.nodes if node.op == "call_module"]
        found: list[list[Piece]] = []
        for level in self.plan.levels:
            nodes = [node for node in calls if node.name.partition("_")[0] == level.name]
            if level.reduction in wanted and nodes:
                finest = inside and level.reduction == min(wanted)
                found += pieces(nodes, self) if finest else whole(nodes)
        return found + (whole([n for n in calls if n.target == "head"]) if levels is None else [])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by level for layer-wise learning rates (timm's interface)."""
        return {
            "stem": r"^(prepare|pyramid)",
            "blocks": [(rf"^{level.name}(?:_|\.)", (i,)) for i, level in enumerate(self.plan.levels)],
        }
