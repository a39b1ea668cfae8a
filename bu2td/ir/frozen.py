"""What never changes: mappings for frozen data, and closed lists of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V", covariant=True)


class FrozenMap(Mapping[K, V]):
    """A mapping that never changes; unlike a mapping proxy it can be hashed, pickled and copied."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenMap[K, V]:
        return self


#: The default of fields that are mappings.
EMPTY: FrozenMap[Any, Any] = FrozenMap()


class Word(str, Enum):
    """A member of a closed list that prints as its word."""

    def __str__(self) -> str:
        return str(self.value)
