"""The attacks of the robustness experiment by name, with all settings written out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bu2td.errors import OptionError, nearest

#: How thoroughly an attack searches. "full" has Foolbox 2's ranges and about as many queries as its defaults (a
#: line of 1000 steps, about 1000 noise images, 10 x 10 x 10 rotations and shifts of up to 5 degrees and pixels),
#: with fewer steps where those take minutes: boundary (25,000), HopSkipJump (64), Carlini-Wagner (9 x 10,000).
#: "quick" takes about a minute for LeNetFC, 100 digits of 32 x 32 px, all attacks and three runs on one core.
BUDGETS = ("quick", "full")


@dataclass(frozen=True)
class Attack:
    """An attack and its settings. All of them minimise the L2 distance in pixel values from 0 to 1.

    Attributes:
        name: the word that names it in commands and files.
        title: for figures and tables.
        group: "pixels", "geometry", "filter", "noise" (the paper's), "white-box" (uses gradients), "decision" (asks
            for classes only).
        deterministic: whether a second run would give the same again.
        builder: module and class of the Foolbox attack.
        quick, full: arguments of that class under the two budgets.
    """

    name: str
    title: str
    group: str
    deterministic: bool
    builder: str
    quick: Mapping[str, int | float]
    full: Mapping[str, int | float]

    def settings(self, budget: str = "full") -> dict[str, int | float]:
        """Arguments of the attack's class under a budget, as they go into JSON.

        Raises:
            OptionError: there is no such budget.
        """
        if budget not in BUDGETS:
            raise OptionError(
                f"unknown budget {budget!r}, expected one of {', '.join(BUDGETS)}.{nearest(str(budget), BUDGETS)}"
            )
        return dict(self.quick if budget == "quick" else self.full)

    def build(self, budget: str = "full") -> Any:
        """The Foolbox attack (`foolbox.attacks.base.MinimizationAttack`).

        Raises:
            OptionError: there is no such budget.
            MissingPackageError: Foolbox is not installed.
        """
        settings = self.settings(budget)
        module, _, name = self.builder.rpartition(".")
        return getattr(_module(module), name)(**settings)

    def describe(self, budget: str = "full") -> dict[str, Any]:
        """Everything that determines the attack, for JSON."""
        return {"name": self.name, "class": self.builder, "budget": budget, "settings": self.settings(budget)}


def _module(name: str) -> Any:
    home = importlib.import_module(
        "bu2td.evaluate.robustness.foolbox_attacks"
    )  # says what to install where Foolbox is missing
    return home.fa if name == "foolbox.attacks" else importlib.import_module(name)


_OWN, _INWARD = "bu2td.evaluate.robustness.foolbox_attacks", "bu2td.evaluate.robustness.inward"
_GRADIENT = {"smallest": 0.003, "largest": 1.0}
_NOISE = {"smallest": 0.02, "largest": 1.0}

_ALL = (
    Attack("single-pixel", "Single pixel", "pixels", True, f"{_OWN}.SinglePixelAttack", {"side": 12}, {"side": 32}),
    Attack(
        "spatial",
        "Rotation and shift",
        "geometry",
        True,
        f"{_OWN}.SpatialAttack",
        {"shift": 5.0, "angle": 5.0, "shift_steps": 6, "angle_steps": 4},
        {"shift": 5.0, "angle": 5.0, "shift_steps": 10, "angle_steps": 10},
    ),
    Attack(
        "shifts",
        "Shifts",
        "geometry",
        True,
        f"{_OWN}.SpatialAttack",
        {"shift": 5.0, "angle": 0.0, "shift_steps": 10, "angle_steps": 1},
        {"shift": 5.0, "angle": 0.0, "shift_steps": 10, "angle_steps": 1},
    ),
    Attack(
        "pointwise",
        "Pointwise",
        "pixels",
        False,
        f"{_INWARD}.PointwiseAttack",
        {"start_steps": 50, "passes": 1, "bisections": 4},
        {"start_steps": 200, "passes": 3, "bisections": 10},
    ),
    Attack(
        "gaussian-blur",
        "Gaussian blur",
        "filter",
        True,
        f"{_OWN}.GaussianBlurAttack",
        {"steps": 40, "bisections": 6, "extent": 0.5},
        {"steps": 1000, "bisections": 4, "extent": 1.0},
    ),
    Attack(
        "contrast-reduction",
        "Contrast reduction",
        "filter",
        True,
        f"{_OWN}.ContrastReductionAttack",
        {"steps": 40, "bisections": 6},
        {"steps": 1000, "bisections": 4},
    ),
    Attack(
        "additive-uniform",
        "Additive uniform noise",
        "noise",
        False,
        f"{_OWN}.AdditiveUniformNoiseAttack",
        {**_NOISE, "steps": 16, "bisections": 4, "draws": 4},
        {**_NOISE, "steps": 60, "bisections": 8, "draws": 20},
    ),
    Attack(
        "additive-gaussian",
        "Additive Gaussian noise",
        "noise",
        False,
        f"{_OWN}.AdditiveGaussianNoiseAttack",
        {**_NOISE, "steps": 16, "bisections": 4, "draws": 4},
        {**_NOISE, "steps": 60, "bisections": 8, "draws": 20},
    ),
    Attack(
        "salt-and-pepper",
        "Salt and pepper",
        "pixels",
        False,
        "foolbox.attacks.SaltAndPepperNoiseAttack",
        {"steps": 100},
        {"steps": 1000},
    ),
    Attack(
        "blended-uniform",
        "Blended uniform noise",
        "noise",
        False,
        f"{_OWN}.BlendedUniformNoiseAttack",
        {"steps": 40, "bisections": 6, "directions": 50},
        {"steps": 1000, "bisections": 4, "directions": 1000},
    ),
    Attack(
        "fgsm",
        "Fast gradient (L2)",
        "white-box",
        True,
        f"{_OWN}.FastGradientAttack",
        {**_GRADIENT, "steps": 30, "bisections": 8},
        {**_GRADIENT, "steps": 200, "bisections": 8},
    ),
    Attack(
        "pgd",
        "PGD (L2)",
        "white-box",
        False,
        f"{_OWN}.ProjectedGradientAttack",
        {**_GRADIENT, "steps": 12, "bisections": 5, "iterations": 10, "stepsize": 0.25},
        {**_GRADIENT, "steps": 12, "bisections": 6, "iterations": 40, "stepsize": 0.1},
    ),
    Attack(
        "deepfool",
        "DeepFool",
        "white-box",
        True,
        "foolbox.attacks.L2DeepFoolAttack",
        {"steps": 20, "candidates": 4, "overshoot": 0.02},
        {"steps": 50, "candidates": 10, "overshoot": 0.02},
    ),
    Attack(
        "carlini-wagner",
        "Carlini-Wagner",
        "white-box",
        True,
        f"{_OWN}.CarliniWagnerAttack",
        {"searches": 4, "steps": 30, "stepsize": 0.02, "initial_const": 1.0, "bisections": 8},
        {"searches": 6, "steps": 100, "stepsize": 0.02, "initial_const": 1.0, "bisections": 10},
    ),
    Attack(
        "hop-skip-jump",
        "HopSkipJump",
        "decision",
        False,
        f"{_INWARD}.HopSkipJumpAttack",
        {"steps": 3, "queries": 30, "start_steps": 50},
        {"steps": 20, "queries": 100, "start_steps": 200},
    ),
    Attack(
        "boundary",
        "Boundary",
        "decision",
        False,
        f"{_INWARD}.BoundaryAttack",
        {"steps": 200, "start_steps": 50},
        {"steps": 5000, "start_steps": 200},
    ),
)

#: All attacks by name, in the order of tables.
ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _ALL}
#: The paper's ten.
PAPER: tuple[str, ...] = tuple(ATTACKS)[:10]
#: The white-box and decision-based ones.
GRADIENT: tuple[str, ...] = tuple(ATTACKS)[10:]
GROUPS: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "gradient": GRADIENT}


def find_attack(name: str | Attack) -> Attack:
    """The attack of this name.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    if isinstance(name, Attack):
        return name
    if name not in ATTACKS:
        raise OptionError(f"unknown attack {name!r}.{nearest(str(name), ATTACKS)} Known: {', '.join(ATTACKS)}")
    return ATTACKS[name]


__all__ = ["ATTACKS", "BUDGETS", "GRADIENT", "PAPER", "Attack", "find_attack"]
