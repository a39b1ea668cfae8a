"""The attacks of the robustness experiment by name, with all settings written out."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bu2td.errors import OptionError, nearest

#: How thoroughly an attack searches. "full" has Foolbox 2's ranges and about as many queries as its defaults (a
#: line of 1000 steps, about 1000 noise images, 11 x 11 x 11 rotations and shifts of up to 5 degrees and pixels),
#: with fewer steps where those take minutes: boundary (25,000), HopSkipJump (64). "quick" asks LeNetFC about 4,600
#: times per digit of 32 x 32 px (column queries of robustness.csv), all attacks but AutoAttack and three runs.
BUDGETS = ("quick", "full")
#: Kinds of attacks: the paper's, those that use gradients, those that ask for classes only.
KINDS = ("pixels", "geometry", "filter", "noise", "white-box", "decision")
NORMS = ("l2", "linf")


@dataclass(frozen=True)
class Attack:
    """An attack and its settings, for pixel values from 0 to 1.

    Attributes:
        name: the word that names it in commands and files.
        title: for figures and tables.
        group: one of `KINDS`.
        deterministic: whether a second run would give the same again.
        builder: module (of this package, or "foolbox") and class of the Foolbox attack.
        quick, full: arguments of that class under the two budgets.
        norm: in which distances are measured, one of `NORMS`.
        steps: the argument that counts the steps along the gradient, where more of them should only help.
        more: by what factor these steps are more than the budget's (`longer`).
        once: one run is enough, for the attack draws anew by itself.
        asks: how often a run asks about an image under the two budgets, a gradient counting twice: measured on
            LeNetFC, trained on Fashion-MNIST (AutoAttack: what it asks at most).
    """

    name: str
    title: str
    group: str
    deterministic: bool
    builder: str
    quick: Mapping[str, int | float]
    full: Mapping[str, int | float]
    norm: str = "l2"
    steps: str = ""
    more: int = 1
    once: bool = False
    asks: tuple[int, int] = (0, 0)

    def settings(self, budget: str = "full") -> dict[str, int | float]:
        """Arguments of the attack's class under a budget, as they go into JSON.

        Raises:
            OptionError: there is no such budget.
        """
        if budget not in BUDGETS:
            raise OptionError(
                f"unknown budget {budget!r}, expected one of {', '.join(BUDGETS)}.{nearest(str(budget), BUDGETS)}"
            )
        found = dict(self.quick if budget == "quick" else self.full)
        if self.steps:
            found[self.steps] *= self.more
        return found

    def build(self, budget: str = "full") -> Any:
        """The Foolbox attack (`foolbox.attacks.base.MinimizationAttack`).

        Raises:
            OptionError: there is no such budget.
            MissingPackageError: Foolbox (for AutoAttack: pyautoattack) is not installed.
        """
        settings = self.settings(budget)
        module, _, name = self.builder.partition(".")
        home = importlib.import_module("bu2td.evaluate.robustness.base")  # says what to install without Foolbox
        if module == "foolbox":
            return getattr(home.fa, name)(**settings)
        return getattr(importlib.import_module(f"bu2td.evaluate.robustness.{module}"), name)(**settings)

    def runs(self, repeats: int) -> int:
        """How often it is run where one wants `repeats`."""
        return 1 if self.deterministic or self.once else repeats

    def longer(self, factor: int) -> Attack:
        """The same attack with more steps along the gradient."""
        return dataclasses.replace(self, more=factor)

    def describe(self, budget: str = "full") -> dict[str, Any]:
        """Everything that determines the attack, for JSON."""
        return {"name": self.name, "class": self.builder, "budget": budget, "settings": self.settings(budget)}


_GRADIENT = {"smallest": 0.003, "largest": 1.0}
_NOISE = {"smallest": 0.02, "largest": 1.0}

_ALL = (
    Attack(
        "single-pixel",
        "Single pixel",
        "pixels",
        True,
        "pixels.SinglePixelAttack",
        {"side": 12},
        {"side": 32},
        asks=(290, 1600),
    ),
    Attack(
        "spatial",
        "Rotation and shift",
        "geometry",
        True,
        "geometry.SpatialAttack",
        {"shift": 5.0, "angle": 5.0, "shift_steps": 6, "angle_steps": 3},
        {"shift": 5.0, "angle": 5.0, "shift_steps": 11, "angle_steps": 11},
        asks=(100, 600),
    ),
    Attack(
        "shifts",
        "Shifts",
        "geometry",
        True,
        "geometry.SpatialAttack",
        {"shift": 5.0, "angle": 0.0, "shift_steps": 11, "angle_steps": 1},
        {"shift": 5.0, "angle": 0.0, "shift_steps": 11, "angle_steps": 1},
        asks=(81, 81),
    ),
    Attack(
        "pointwise",
        "Pointwise",
        "pixels",
        False,
        "walks.PointwiseAttack",
        {"start_steps": 50, "passes": 1, "bisections": 4},
        {"start_steps": 200, "passes": 3, "bisections": 10},
        asks=(170, 530),
    ),
    Attack(
        "gaussian-blur",
        "Gaussian blur",
        "filter",
        True,
        "filters.GaussianBlurAttack",
        {"steps": 40, "bisections": 6, "extent": 0.5},
        {"steps": 1000, "bisections": 4, "extent": 1.0},
        asks=(29, 190),
    ),
    Attack(
        "contrast-reduction",
        "Contrast reduction",
        "filter",
        True,
        "filters.ContrastReductionAttack",
        {"steps": 40, "bisections": 6},
        {"steps": 1000, "bisections": 4},
        asks=(36, 460),
    ),
    Attack(
        "additive-uniform",
        "Additive uniform noise",
        "noise",
        False,
        "noise.AdditiveUniformNoiseAttack",
        {**_NOISE, "steps": 16, "bisections": 4, "draws": 4},
        {**_NOISE, "steps": 60, "bisections": 8, "draws": 20},
        asks=(69, 790),
    ),
    Attack(
        "additive-gaussian",
        "Additive Gaussian noise",
        "noise",
        False,
        "noise.AdditiveGaussianNoiseAttack",
        {**_NOISE, "steps": 16, "bisections": 4, "draws": 4},
        {**_NOISE, "steps": 60, "bisections": 8, "draws": 20},
        asks=(70, 750),
    ),
    Attack(
        "salt-and-pepper",
        "Salt and pepper",
        "pixels",
        False,
        "foolbox.SaltAndPepperNoiseAttack",
        {"steps": 100},
        {"steps": 1000},
        asks=(100, 1000),
    ),
    Attack(
        "blended-uniform",
        "Blended uniform noise",
        "noise",
        False,
        "noise.BlendedUniformNoiseAttack",
        {"steps": 40, "bisections": 6, "directions": 50},
        {"steps": 1000, "bisections": 4, "directions": 1000},
        asks=(37, 350),
    ),
    Attack(
        "fgsm",
        "Fast gradient (L2)",
        "white-box",
        True,
        "gradient.FastGradientAttack",
        {**_GRADIENT, "steps": 30, "bisections": 8},
        {**_GRADIENT, "steps": 200, "bisections": 8},
        asks=(67, 260),
    ),
    Attack(
        "pgd",
        "PGD (L2)",
        "white-box",
        False,
        "gradient.ProjectedGradientAttack",
        {**_GRADIENT, "steps": 12, "bisections": 5, "iterations": 10, "stepsize": 0.25},
        {**_GRADIENT, "steps": 12, "bisections": 6, "iterations": 40, "stepsize": 0.1},
        steps="iterations",
        asks=(200, 820),
    ),
    Attack(
        "deepfool",
        "DeepFool",
        "white-box",
        True,
        "foolbox.L2DeepFoolAttack",
        {"steps": 20, "candidates": 4, "overshoot": 0.02},
        {"steps": 50, "candidates": 10, "overshoot": 0.02},
        asks=(120, 360),
    ),
    Attack(
        "ddn",
        "Decoupled direction and norm",
        "white-box",
        True,
        "gradient.DDNAttack",
        {"steps": 50, "init_epsilon": 1.0, "gamma": 0.1},
        {"steps": 300, "init_epsilon": 1.0, "gamma": 0.05},
        steps="steps",
        asks=(100, 600),
    ),
    Attack(
        "fmn",
        "Fast minimum norm",
        "white-box",
        True,
        "gradient.FMNAttack",
        {"steps": 50, "max_stepsize": 1.0, "gamma": 0.05},
        {"steps": 300, "max_stepsize": 1.0, "gamma": 0.05},
        steps="steps",
        asks=(100, 600),
    ),
    Attack(
        "hop-skip-jump",
        "HopSkipJump",
        "decision",
        False,
        "walks.HopSkipJumpAttack",
        {"steps": 3, "queries": 30, "start_steps": 50},
        {"steps": 20, "queries": 100, "start_steps": 200},
        asks=(250, 6700),
    ),
    Attack(
        "boundary",
        "Boundary",
        "decision",
        False,
        "walks.BoundaryAttack",
        {"steps": 200, "start_steps": 50},
        {"steps": 5000, "start_steps": 200},
        asks=(280, 5700),
    ),
    Attack(
        "autoattack-l2",
        "AutoAttack (L2)",
        "white-box",
        False,
        "ensemble.AutoAttackL2",
        {"radii": 5, "smallest": 0.25, "iterations": 20, "queries": 200},
        {"radii": 5, "smallest": 0.25, "iterations": 100, "queries": 5000},
        once=True,
        asks=(4200, 61600),
    ),
    Attack(
        "autoattack-linf",
        "AutoAttack (Linf)",
        "white-box",
        False,
        "ensemble.AutoAttackLinf",
        {"radii": 7, "smallest": 2 / 255, "iterations": 20, "queries": 200},
        {"radii": 7, "smallest": 2 / 255, "iterations": 100, "queries": 5000},
        norm="linf",
        once=True,
        asks=(4200, 61600),
    ),
)


#: All attacks by name, in the order of tables.
ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _ALL}
#: The paper's ten.
PAPER: tuple[str, ...] = tuple(ATTACKS)[:10]
#: The white-box and decision-based ones.
GRADIENT: tuple[str, ...] = tuple(ATTACKS)[10:17]
#: AutoAttack, at fixed radii: an extra that needs a package of its own (pip install pyautoattack).
AUTOATTACK: tuple[str, ...] = tuple(ATTACKS)[17:]
GROUPS: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "gradient": GRADIENT, "autoattack": AUTOATTACK}
#: The smallest perturbation that any attack in L2 found: kinds of attacks that are looked at, by name.
STRONGEST: Mapping[str, tuple[str, ...]] = {
    "strongest": KINDS,
    "strongest-white-box": ("white-box",),
    "strongest-black-box": tuple(kind for kind in KINDS if kind != "white-box"),
}
#: What tables and figures write for a name.
TITLES: Mapping[str, str] = {
    **{name: attack.title for name, attack in ATTACKS.items()},
    "strongest": "Strongest attack per image",
    "strongest-white-box": "Strongest white-box attack",
    "strongest-black-box": "Strongest black-box attack",
}


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


def attack_names(words: Iterable[str]) -> list[str]:
    """Attacks by name, groups spelled out.

    Raises:
        OptionError: there is no such attack or group.
    """
    names = [name for word in words for name in GROUPS.get(word, (word,))]
    return [find_attack(name).name for name in dict.fromkeys(names)]
