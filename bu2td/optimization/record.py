"""Applies the rewrites of `bu2td.optimize` to a network, and says what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bu2td.ir.tables import format_table
from bu2td.ops.surgery import meta_copy
from bu2td.optimization.cost_model import Chooser, Rewrite
from bu2td.optimization.fuse import fuse
from bu2td.optimization.simplify import Shapes, simplify
from bu2td.runtime.network import TopDownNetwork


@dataclass(frozen=True)
class Optimization:
    """What `bu2td.optimize` did.

    Attributes:
        mode: "training" or "inference".
        device: type of the device whose table decided.
        batch_size, image_size: images at once, and their (H, W), that were decided for.
        rewrites: every place where a rewrite was possible, with what decided.
        difference: largest relative difference of the logits to the network before, as measured.
    """

    mode: str
    device: str
    batch_size: int
    image_size: tuple[int, int]
    rewrites: tuple[Rewrite, ...]
    difference: float | None = None

    @property
    def made(self) -> tuple[Rewrite, ...]:
        """The rewrites that were made."""
        return tuple(rewrite for rewrite in self.rewrites if rewrite.chosen)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per place where multiplications were at stake."""
        return [
            {
                "rule": r.rule,
                "site": r.site,
                "MMACs": round(r.macs[0] / 1e6, 1),
                "after": round(r.macs[1 if r.chosen else 0] / 1e6, 1),
                "model": "" if r.gain is None else f"{r.gain:.2f} x",
                "made": "yes" if r.chosen else "no",
                "because": r.reason,
            }
            for r in self.rewrites
            if r.macs[0]
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Rule -> (places where it was applied, places where it could be)."""
        found: dict[str, tuple[int, int]] = {}
        for r in self.rewrites:
            made, seen = found.get(r.rule, (0, 0))
            found[r.rule] = (made + r.chosen, seen + 1)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, as saved files keep it."""
        data = asdict(self)
        rewrites = [{**rewrite, "macs": list(rewrite["macs"])} for rewrite in data["rewrites"]]
        return {**data, "image_size": list(self.image_size), "rewrites": rewrites}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Optimization:
        """The inverse of `to_dict`."""
        rewrites = tuple(Rewrite(**{**r, "macs": tuple(r["macs"])}) for r in data["rewrites"])
        return Optimization(**{**data, "rewrites": rewrites, "image_size": tuple(data["image_size"])})

    def __str__(self) -> str:
        counts = ", ".join(f"{rule} {made} of {seen}" for rule, (made, seen) in self.counts().items())
        lines = [
            f"optimised for {self.mode} on {self.device}, batch size {self.batch_size}, "
            f"images of {self.image_size[0]}x{self.image_size[1]}",
            format_table(self.rows()),
            f"rewrites made: {counts or 'none'}",
        ]
        if self.difference is not None:
            lines.append(f"largest relative difference of the logits: {self.difference:.1e}")
        return "\n".join(lines)


def transform(network: TopDownNetwork, choose: Chooser, image_shape: Sequence[int]) -> None:
    """Rewrite a network in place.

    Args:
        network: without checkpointing.
        choose: decides, and keeps its decisions.
        image_shape: (N, C, H, W) that the decisions are for; N is taken as 1.
    """
    simplify(network, _shapes(network, image_shape), choose)
    if not choose.training:
        network.eval()
        fuse(network, _shapes(network, image_shape), choose)
        network.requires_grad_(False)


def _shapes(network: TopDownNetwork, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    twin: Any = meta_copy(network)
    recorder = Shapes(twin.eval())
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        recorder.run(torch.empty((1, *image_shape[1:]), device="meta", dtype=dtype))
    return recorder.found


def retransform(network: TopDownNetwork, data: dict[str, Any]) -> None:
    """Make the rewrites of a saved file in a network that was built from its recipe, in place."""
    done = Optimization.from_dict(data)
    pairs = [(rewrite.rule, rewrite.site) for rewrite in done.made]
    choose = Chooser(done.mode, done.device, done.batch_size, given=pairs)
    transform(network, choose, (*network.plan.image_shape[:2], *done.image_size))
    network.optimization = done
