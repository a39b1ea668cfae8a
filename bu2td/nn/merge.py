"""Conv units that a top-down network adds to its bottom-up network's blocks."""

from typing import Any

import torch
from torch import Tensor, nn


class ConvUnit(nn.Module):
    """A convolution with its norm and activation, in either order.

    Args:
        conv: the convolution.
        norm: the norm, of the conv's output width, or of its input width when it comes first.
        act: the activation.
        preactivation: norm-act-conv instead of conv-norm-act.

    Shapes: (N, C_in, H, W) -> (N, C_out, H, W).
    """

    conv: nn.Module

    def __init__(
        self,
        conv: nn.Module,
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
        preactivation: bool = False,
    ) -> None:
        super().__init__()
        self.preactivation = preactivation
        beside = {name: part for name, part in (("norm", norm), ("act", act)) if part is not None}
        for name, part in ({**beside, "conv": conv} if preactivation else {"conv": conv, **beside}).items():
            self.add_module(name, part)

    def beside(self) -> dict[str, nn.Module]:
        """Norm and activation, in the order in which they run, by name; those that there are."""
        modules: dict[str, Any] = self._modules
        return {name: modules[name] for name in ("norm", "act") if name in modules}

    def in_order(self) -> list[tuple[str, nn.Module]]:
        """All parts with their names, in the order in which they run."""
        conv, beside = ("conv", self.conv), list(self.beside().items())
        return [*beside, conv] if self.preactivation else [conv, *beside]

    def forward(self, x: Tensor) -> Tensor:
        """Run the parts in their order."""
        return self.rest(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        """The first half: the convolution, or the norm and activation in front of it."""
        for part in self._halves()[0]:
            x = part(x)
        return x

    def rest(self, x: Tensor) -> Tensor:
        """The second half, of what the first returned."""
        for part in self.after():
            x = part(x)
        return x

    def after(self) -> list[nn.Module]:
        """The modules of the second half."""
        return self._halves()[1]

    def _halves(self) -> tuple[list[nn.Module], list[nn.Module]]:
        parts = [part for _, part in self.in_order()]
        cut = len(parts) - 1 if self.preactivation and len(parts) > 1 else 1
        return parts[:cut], parts[cut:]


class Lateral(ConvUnit):
    """Lifts a pyramid image to the width of its level (paper, section 3.1)."""


class Transition(ConvUnit):
    """1x1 conv unit that changes the width at low resolution, before upsampling."""


class Joining:
    """A form of a merge: ``first(x, lateral)``, ``rest(merged)``, and ``after()``, the modules of the second half.

    Attributes:
        concatenates: whether the first half builds a map of twice the width.
    """

    concatenates = True


class Merge(ConvUnit, Joining):
    """Joins upsampled features and the lateral of a level (paper, section 3.1, figure 2).

    ``s = x + lateral``; the unit's convolution reads ``cat([s, lateral])`` and returns to the level's
    width. With ``join="add"`` it reads s, with ``join="concat"`` cat([x, lateral]).

    Shapes: (N, C, H, W), (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, *parts: Any, join: str = "add_concat", **kwargs: Any) -> None:
        super().__init__(*parts, **kwargs)
        self.join = join

    def forward(self, x: Tensor, lateral: Tensor) -> Tensor:  # type: ignore[override]
        """Return the merged features."""
        return self.rest(self.first(x, lateral))

    def first(self, x: Tensor, lateral: Tensor) -> Tensor:  # type: ignore[override]
        """Join, and the first half of the unit."""
        if self.join != "concat":
            x = x + lateral
        return super().first(x if self.join == "add" else torch.cat([x, lateral], dim=1))

    def extra_repr(self) -> str:
        """Show the configuration when printed."""
        return f"join={self.join!r}"
