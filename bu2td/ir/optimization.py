"""What was done to a network to make it faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bu2td.ir.tables import format_table


@dataclass(frozen=True)
class Rewrite:
    """A place where a rewrite was possible.

    Attributes:
        rule: one of `bu2td.optimization.RULES`.
        site: the module, by its path in the network.
        macs: multiply-accumulates for one image before and after.
        gain: how many times faster the new form is by the model; None where it needs no model.
        chosen: whether the rewrite was made.
        reason: what decided.
        seconds: before and after, as measured alone at the place's shapes.
    """

    rule: str
    site: str
    macs: tuple[int, int] = (0, 0)
    gain: float | None = None
    chosen: bool = True
    reason: str = ""
    seconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Optimization:
    """What `bu2td.optimize` did.

    Attributes:
        mode: "training" or "inference".
        device: type of the device whose table decided.
        batch_size, image_size: images at once, and their (H, W), that were decided for.
        rewrites: every place where a rewrite was possible, with what decided.
        difference: largest relative difference of the logits to the network before, as measured.
        tune: what decided: "measure", "model" or "off".
        seconds: of a step of the network before and of this one, where they were measured in turns.
        timed_batch: images of such a step.
    """

    mode: str
    device: str
    batch_size: int
    image_size: tuple[int, int]
    rewrites: tuple[Rewrite, ...]
    difference: float | None = None
    tune: str = "model"
    seconds: tuple[float, float] | None = None
    timed_batch: int = 0

    @property
    def trains(self) -> bool:
        """Whether the network can still be trained."""
        return self.mode == "training"

    @property
    def made(self) -> tuple[Rewrite, ...]:
        """The rewrites that were made."""
        return tuple(rewrite for rewrite in self.rewrites if rewrite.chosen)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per place where multiplications were at stake, or times measured."""
        return [
            {
                "rule": r.rule,
                "site": r.site,
                "MMACs": round(r.macs[0] / 1e6, 1),
                "after": round(r.macs[1 if r.chosen else 0] / 1e6, 1),
                "gain": "" if r.gain is None else f"{r.gain:.2f} x",
                "ms": "" if r.seconds is None else f"{1e3 * r.seconds[0]:.3f}",
                "new ms": "" if r.seconds is None else f"{1e3 * r.seconds[1]:.3f}",
                "made": "yes" if r.chosen else "no",
                "because": r.reason,
            }
            for r in self.rewrites
            if r.macs[0] or r.seconds
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
        pairs = ("macs", "seconds")
        rewrites = [{**rewrite, **{name: _listed(rewrite[name]) for name in pairs}} for rewrite in data["rewrites"]]
        sizes = {"image_size": list(self.image_size), "seconds": _listed(self.seconds)}
        return {**data, **sizes, "rewrites": rewrites}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Optimization:
        """The inverse of `to_dict`."""
        rewrites = tuple(
            Rewrite(**{**r, "macs": tuple(r["macs"]), "seconds": _pair(r.get("seconds"))}) for r in data["rewrites"]
        )
        sizes = {"image_size": tuple(data["image_size"]), "seconds": _pair(data.get("seconds"))}
        return Optimization(**{**data, **sizes, "rewrites": rewrites})

    def __str__(self) -> str:
        counts = ", ".join(f"{rule} {made} of {seen}" for rule, (made, seen) in self.counts().items())
        lines = [
            f"optimised for {self.mode} on {self.device}, batch size {self.batch_size}, "
            f"images of {self.image_size[0]}x{self.image_size[1]}",
            format_table(self.rows()),
            f"rewrites made: {counts or 'none'}",
        ]
        if self.seconds is not None:
            before, after = (1e3 * value for value in self.seconds)
            lines.append(
                f"the whole network, {self.timed_batch} images: {before:.1f} ms before, {after:.1f} ms now "
                f"({before / after:.2f} x)"
            )
        if self.difference is not None:
            lines.append(f"largest relative difference of the logits: {self.difference:.1e}")
        return "\n".join(lines)


def _listed(pair: Any) -> list[Any] | None:
    return None if pair is None else list(pair)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    before, after = map(float, value)
    return before, after
