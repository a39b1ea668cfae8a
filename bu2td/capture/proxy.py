"""What stands for a value while a forward is followed: it records what is done to it, and answers questions."""

from __future__ import annotations

from typing import Any

from torch import fx

from bu2td.nn import assigned


class Proxy(fx.Proxy):
    """A proxy whose truth, length, number and parts are answered by its tracer."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol that a library tries: tensors of a graph in the making have none
            raise AttributeError(name)
        if name == "ndim":
            return self._tracer.answer(_Attribute(self, name), int)
        return _Attribute(self, name)

    def dim(self) -> Any:
        """The number of dimensions: the same at all sizes."""
        return self._tracer.answer(self._method("dim"), int)

    def register_hook(self, hook: Any) -> None:
        """A hook looks at gradients, and computes nothing."""

    def retain_grad(self) -> None:
        """A wish to look at gradients."""

    def requires_grad_(self, requires_grad: bool = True) -> Proxy:
        """A wish for gradients."""
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        """An assignment to a part makes a new value, which stands for the tensor from here on."""
        self.node = self._call(assigned, index, value).node

    def __len__(self) -> int:
        return int(self._tracer.answer(self, len))

    def __int__(self) -> int:
        return int(self._tracer.answer(self, int))

    def __index__(self) -> int:
        return int(self._tracer.answer(self, int))

    def __float__(self) -> float:
        return float(self._tracer.answer(self, float))

    def __round__(self, digits: int | None = None) -> Any:
        return self._call(round, *(() if digits is None else (digits,)))

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return id(self)

    def _method(self, name: str) -> Any:
        return self.tracer.create_proxy("call_method", name, (self,), {})

    @property
    def _tracer(self) -> Any:
        return self.tracer

    def _call(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})


class _Attribute(Proxy):
    """An attribute of a value: a method if it is called, else a value of its own."""

    def __init__(self, owner: Proxy, name: str) -> None:
        self.owner = owner
        self.attribute = name
        self.tracer = owner.tracer
        self._read: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._read is None:
            self._read = self.tracer.create_proxy("call_function", getattr, (self.owner, self.attribute), {}).node
        return self._read

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attribute, (self.owner, *args), kwargs)
