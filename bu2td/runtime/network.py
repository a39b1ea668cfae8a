"""The result of a conversion: a live top-down network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from bu2td.errors import ExportError, FusedNetworkError, OptionError, ReductionError, nearest
from bu2td.graph import ending_in
from bu2td.ir import Optimization
from bu2td.nn import Pyramid
from bu2td.runtime.record import Record
from bu2td.runtime.sharing import Shared
from bu2td.runtime.surface import Surface


class TopDownNetwork(Surface, Shared):
    """A top-down network, as `bu2td.convert` returns it: an ordinary, trainable `torch.nn.Module`.

    ``forward`` maps images (N, C, H, W) of any size from about 32 px up (unless ``plan.notes`` name layers that
    are bound to some) to logits (N, num_classes), in train and in eval mode. ``code`` is the Python source of
    the top level. Submodules are the pyramid, for every reduction R ``rR_lateral``, ``rR_transition``,
    ``rR_up``, ``rR_merge`` and the level ``rR``, and the head; ``stages`` says which of them there are.

    """

    _record: Record | None = None
    _features: Any = None

    def __init__(self, root: Any, graph: fx.Graph, record: Record, class_name: str = "TopDownNetwork") -> None:
        super().__init__(root, graph, class_name)
        self.record = record

    @property
    def record(self) -> Record:
        """What the network is, all in one; the properties below read it."""
        assert self._record is not None
        return self._record

    @record.setter
    def record(self, record: Record) -> None:
        self._record = record
        self._write_features()
        if self.is_fused and _refuse_training not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(_refuse_training)

    def recompile(self) -> Any:
        """Make ``forward``, and the function of `features`, of the graph again."""
        code = super().recompile()
        if self._record is not None:
            self._write_features()
        return code

    def _write_features(self) -> None:
        """Make the function of `features`: a method as ``forward`` is, so that compilers follow it."""
        names = {node.name for node in self.graph.nodes}
        if names.issuperset(self.stages.outputs):  # else the graph is being edited
            graph = ending_in(self.graph, self.stages.outputs)
            type(self)._features = type(fx.GraphModule(self, graph)).forward  # every GraphModule has its own class

    @property
    def recipe(self) -> dict[str, Any]:
        """What `bu2td.load` needs to build it again."""
        return self.record.recipe.to_dict()

    @property
    def optimization(self) -> Optimization | None:
        """What `bu2td.optimize` did to it."""
        return self.record.recipe.optimization

    @property
    def checkpointing(self) -> dict[str, Any] | None:
        """The options of that, as `set_grad_checkpointing` takes them."""
        chosen = self.record.checkpointing
        if chosen is None:
            return None
        return {"levels": None if chosen.levels is None else list(chosen.levels), "inside": chosen.inside}

    def __prepare_scriptable__(self) -> Any:
        raise ExportError(
            "torch.jit.script does not compile a top-down network: it would have to compile Python that reads the "
            "sizes of images. torch.jit.trace(td.eval(), images), torch.export.export(td, (images,)) and "
            "bu2td.export(td, 'td.onnx') take it as it is"
        )

    def train(self, mode: bool = True) -> Any:
        """Set train or eval mode.

        A network that is optimised for inference may be asked to train, as tools do that look at both modes; it
        raises `FusedNetworkError` when it is called so.
        """
        if self.is_fused:
            self.training = mode
            return self
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
        return self._features(x)

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
        size = images[0]
        pyramid.check(size)
        if self.plan.input is not None:
            prepare: Any = self.prepare
            images = [prepare(image) for image in images]
        reduced = tuple(pyramid.reduce(image, r) for image, r in zip(images, ladder, strict=True))
        given = next(n.name for n in self.graph.nodes if n.op == "placeholder")  # of the size that maps end at
        return self.run_from(self.stages.pyramid, {given: size, self.stages.pyramid: reduced})[self.stages.head]


def _refuse_training(network: nn.Module, args: tuple[Any, ...]) -> None:
    """Refuse images in train mode, of a network that is optimised for inference; tracers only look."""
    if network.training and not any(isinstance(value, fx.Proxy) for value in args):
        raise FusedNetworkError(
            "this network is optimised for inference: its norms are folded into its convolutions, so that it "
            "cannot train. Train the network that it was made of, or bu2td.optimize(td, mode='training')"
        )
