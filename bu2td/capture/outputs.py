"""What a model returns, and which of it are the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx

from bu2td.capture.values import Values
from bu2td.errors import ModelOutputError

#: Under which names logits are returned.
_NAMES = ("logits", "out", "output", "outputs", "pred", "preds", "prediction", "predictions", "y", "scores", "cls")


@dataclass(frozen=True, eq=False)
class Output:
    """A value that a model returns.

    Attributes:
        label: where it stands in what is returned, ``[0]`` or ``['logits']``; "" if it is all.
        node: what computes it.
        shape, other: for images of the model's own size, and for larger ones; None if it is no tensor, or its shape
            is not known.
    """

    label: str
    node: fx.Node
    shape: tuple[int, ...] | None
    other: tuple[int, ...] | None

    @property
    def classifies(self) -> bool:
        """Whether it may be logits: (N, K), or (N, K, 1, 1) at all sizes."""
        shapes = [shape for shape in (self.shape, self.other) if shape is not None]
        return all(len(shape) in (2, 4) and set(shape[2:]) <= {1} for shape in shapes)


def plain(value: Any) -> Any:
    """What a model returns in tuples and dicts, without what is None: data classes and output classes are dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(plain(each) for each in value)
    if isinstance(value, SimpleNamespace):
        return plain(vars(value))
    return value


def outputs(returned: Any, values: Values) -> list[Output]:
    """All values in what a traced graph returns."""
    found: list[Output] = []

    def collect(value: Any, label: str) -> None:
        if isinstance(value, fx.Node) and hasattr(value.target, "_fields"):
            names: Any = value.target
            value = dict(zip(names._fields, value.args, strict=False)) | dict(value.kwargs)
        if isinstance(value, fx.Node):
            own, other = values.of(value)
            if not isinstance(own, list | tuple):
                found.append(Output(label, value, _shape(own), _shape(other)))
        elif isinstance(value, Mapping):
            for key, each in value.items():
                collect(each, f"{label}[{key!r}]")
        elif isinstance(value, list | tuple):
            for i, each in enumerate(value):
                collect(each, f"{label}[{i}]")

    collect(returned, "")
    return found


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def likely_logits(found: Sequence[Output]) -> list[Output]:
    """The outputs that may be the logits, the likeliest first.

    That is one of a name for logits, else the deepest: the one that most of the graph is computed into. What is
    computed from another by a softmax is its probability.

    Raises:
        ModelOutputError: there is none.
    """
    able = [output for output in found if output.classifies]
    if not able:
        raise ModelOutputError(_none_classifies(found))
    named = [o for name in _NAMES for o in able if o.label.endswith(f"[{name!r}]")]
    if named:
        return [named[0]]
    behind = {o.label: _behind(o.node) for o in able}
    logits = [o for o in able if not (_normalises(o.node) and any(x.node in behind[o.label] for x in able))]
    first = max(logits or able, key=lambda o: len(behind[o.label]))
    return [first, *(o for o in able if o is not first)]


def _normalises(node: fx.Node) -> bool:
    """Whether a node is a softmax, by its name: of modules, functions and methods alike."""
    return "softmax" in str(getattr(node.target, "__name__", node.target)).lower()


def _behind(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node is computed from."""
    seen, stack = set[fx.Node](), [node]
    while stack:
        new = [n for n in stack.pop().all_input_nodes if n not in seen]
        seen.update(new)
        stack += new
    return seen


def _none_classifies(found: Sequence[Output]) -> str:
    shapes = ", ".join(f"{o.label or 'a tensor'} of shape {o.shape}" for o in found[:6]) or "no tensor"
    maps = [o for o in found if o.shape and len(o.shape) == 4]
    what = (
        "it returns maps, as networks for segmentation, generation and features do, which have no top-down form, "
        "but bu2td.dense(model, num_classes) makes one for pixels of their encoder"
        if maps
        else "wrap it in a module that returns its logits"
    )
    return f"the model returns {shapes}; one tensor of logits (N, classes) is needed: {what}"
