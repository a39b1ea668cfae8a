"""Containers: the modules that only hold others, on the paths that layers have in the bottom-up network.

A graph module calls layers alone, ``layer4.0.conv1``. What lies on the way to one held blocks in the bottom-up
network, too, and is reached there as ``layer4[0]``; so it is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from bu2td.errors import nearest


class Named(nn.Module):
    """A container whose modules have names: ``block["conv1"]``, ``"conv1" in block``, ``block.items()``."""

    def __getitem__(self, key: str | int) -> Any:
        """The module of a name, or of a number that is its name.

        Raises:
            KeyError: there is none.
        """
        name = str(key)
        if name not in self._modules:
            raise KeyError(f"there is no module {key!r} here.{nearest(name, self._modules)}")
        return self._modules[name]

    def __len__(self) -> int:
        """How many modules it holds."""
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        """Their names."""
        return iter(list(self._modules))

    def __contains__(self, name: object) -> bool:
        """Whether one has this name."""
        return name in self._modules

    def keys(self) -> Any:
        """Their names."""
        return self._modules.keys()

    def values(self) -> Any:
        """The modules."""
        return self._modules.values()

    def items(self) -> Any:
        """Names and modules."""
        return self._modules.items()


class Numbered(Named):
    """A container whose modules have numbers: ``layer4[0]``, ``layer4[-1]``, ``for block in layer4``.

    A number is the one that the module has in the bottom-up network, and in the names of parameters: where a level
    holds some of the blocks alone, the others have no module here. Negative ones count from the last.
    """

    def __getitem__(self, key: str | int | slice) -> Any:
        """The module of a number, or the list of those in a slice of the numbers.

        Raises:
            IndexError: there is none of this number.
        """
        numbers = self._numbers()
        count = max(numbers, default=-1) + 1
        if isinstance(key, slice):
            wanted = range(*key.indices(count))
            return [self._modules[str(number)] for number in wanted if number in numbers]
        if isinstance(key, str) and not re.fullmatch(r"-?\d+", key):
            return super().__getitem__(key)
        number = int(key)
        number += count if number < 0 else 0
        if number not in numbers:
            raise IndexError(
                f"there is no module {key} here: the numbers are those of the bottom-up network, and this part of "
                f"it holds {', '.join(map(str, numbers)) or 'none'}"
            )
        return self._modules[str(number)]

    def __iter__(self) -> Iterator[Any]:
        """The modules, in the order of their numbers."""
        return iter([self._modules[str(number)] for number in self._numbers()])

    def __contains__(self, module: object) -> bool:
        """Whether it holds a module."""
        return any(module is own for own in self._modules.values())

    def _numbers(self) -> list[int]:
        return sorted(map(int, self._modules))


def contain(module: nn.Module) -> None:
    """Turn the bare modules on the paths to a graph module's layers into containers, in its mode."""
    for child in module._modules.values():
        if child is None or type(child) not in (nn.Module, Named, Numbered):
            continue
        if child._modules:
            numbered = all(name.isdecimal() for name in child._modules)
            child.__class__ = Numbered if numbered else Named
        if child.training != module.training:
            child.training = module.training
        contain(child)
