"""Every attack against what is known without it: closed forms, brute force, scipy, Foolbox's own attacks."""

import json
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from problems import Linear, curved_problem, foolbox_model, linear_problem, run
from torch import Tensor, nn
from torch.nn import functional as F

from bu2td.errors import OptionError
from bu2td.evaluate.robustness.candidates import Search
from bu2td.evaluate.robustness.registry import (
    ATTACKS,
    AUTOATTACK,
    BUDGETS,
    GRADIENT,
    KINDS,
    PAPER,
    STRONGEST,
    TITLES,
    attack_names,
    find_attack,
)
from bu2td.evaluate.robustness.smallest import Perturbations, smallest_perturbations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox

    from bu2td.evaluate.robustness import filters, walks

#: Those that need no package of their own.
USUAL = [name for name in ATTACKS if name not in AUTOATTACK]
DETERMINISTIC = [name for name, attack in ATTACKS.items() if attack.deterministic]


# --- the registry -----------------------------------------------------------------------------------


def test_registry() -> None:
    assert len(PAPER) == 10
    assert (*PAPER, *GRADIENT, *AUTOATTACK) == tuple(ATTACKS)
    assert {"fgsm", "pgd", "deepfool", "ddn", "fmn", "hop-skip-jump", "boundary"} == set(GRADIENT)
    assert len(set(TITLES.values())) == len(TITLES) == len(ATTACKS) + len(STRONGEST)
    assert {attack.group for attack in ATTACKS.values()} == set(KINDS)
    assert {name for name, attack in ATTACKS.items() if attack.norm != "l2"} == {"autoattack-linf"}
    for name, attack in ATTACKS.items():
        assert attack.name == name == name.lower()
        assert find_attack(name) is attack
        assert find_attack(attack) is attack


def test_groups_of_attacks() -> None:
    assert attack_names(["paper", "pgd", "gradient"]) == [*PAPER, "pgd", *(n for n in GRADIENT if n != "pgd")]
    assert attack_names(["autoattack"]) == list(AUTOATTACK)
    with pytest.raises(OptionError, match="unknown attack 'papers'"):
        attack_names(["papers"])


def test_more_steps_are_another_attack_of_the_same_name() -> None:
    for attack in ATTACKS.values():
        longer = attack.longer(3)
        assert longer.name == attack.name
        for budget in BUDGETS:
            settings = {k: v * (3 if k == attack.steps else 1) for k, v in attack.settings(budget).items()}
            assert longer.settings(budget) == settings
            assert (longer.describe(budget) != attack.describe(budget)) == bool(attack.steps)
    assert {name for name, attack in ATTACKS.items() if attack.steps} == {"pgd", "ddn", "fmn"}


@pytest.mark.parametrize(("name", "budget"), list(product(ATTACKS, BUDGETS)))
def test_settings_are_all_of_the_attacks_arguments(name: str, budget: str) -> None:
    import inspect

    attack = find_attack(name)
    if name in AUTOATTACK:
        pytest.importorskip("pyautoattack")
    built = attack.build(budget)
    known = set(inspect.signature(type(built).__init__).parameters) - {"self"}
    if not attack.builder.startswith("foolbox."):
        assert set(attack.settings(budget)) == known
    assert set(attack.settings(budget)) <= known
    assert json.loads(json.dumps(attack.describe(budget))) == attack.describe(budget)


@pytest.mark.parametrize(("word", "near"), [("salt-and-peper", "salt-and-pepper"), ("PGD", "pgd"), ("blur", "")])
def test_unknown_attack(word: str, near: str) -> None:
    with pytest.raises(OptionError, match="unknown attack") as error:
        find_attack(word)
    assert near in str(error.value)


def test_unknown_budget() -> None:
    with pytest.raises(OptionError, match=r"unknown budget 'fulll'.*'full'"):
        find_attack("pgd").build("fulll")


# --- closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("name", "coarse"), [("fgsm", 1.01), ("deepfool", 1.03), ("pgd", 1.1), ("ddn", 1.1), ("fmn", 1.1)]
)
def test_gradient_attacks_reach_the_closed_form(name: str, coarse: float, budget: str) -> None:
    model, images, labels, expected = linear_problem(2)
    found = smallest_perturbations(model, images, labels, name, repeats=1, budget=budget)
    assert (found.distance >= expected * (1 - 1e-4)).all()
    assert (found.distance <= expected * (coarse if budget == "quick" else min(coarse, 1.05))).all()


def test_deepfool_looks_at_all_classes() -> None:
    model, images, labels, expected = linear_problem(4)
    found = smallest_perturbations(model, images, labels, "deepfool")
    assert (found.distance >= expected * (1 - 1e-4)).all()
    assert (found.distance <= expected * 1.03).all()


@pytest.mark.parametrize(("name", "factor"), [("hop-skip-jump", 1.1), ("boundary", 2.0)])
def test_decision_based_attacks_come_close(name: str, factor: float) -> None:
    model, images, labels, expected = linear_problem(2)
    settings = {"steps": 15, "queries": 100} if name == "hop-skip-jump" else {"steps": 1000}
    attack = {"hop-skip-jump": walks.HopSkipJumpAttack, "boundary": walks.BoundaryAttack}[name](**settings)
    distance, _ = run(attack, model, images, labels)
    assert (distance.numpy() >= expected * (1 - 1e-4)).all()
    assert (distance.numpy() <= expected * factor).all()


@pytest.mark.parametrize("name", USUAL)
def test_no_attack_is_below_the_closed_form(name: str) -> None:
    model, images, labels, expected = linear_problem(3)
    found = smallest_perturbations(model, images, labels, name, repeats=2, budget="quick")
    assert (found.distance >= expected * (1 - 1e-4)).all()
    assert np.isfinite(found.distance).any()
    assert not found.dropped.any()


@pytest.mark.parametrize(("steps", "bisections"), [(1000, 0), (20, 10)])
def test_contrast_reduction_reaches_the_closed_form(steps: int, bisections: int) -> None:
    model = Linear(3, (1, 4, 4))
    model.bias.data += torch.tensor([1.0, 0.0, -1.0])  # grey is of class 0
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = model(images).argmax(1)
    with torch.no_grad():
        start, end = model(images), model(torch.full_like(images, 0.5))
    # Logits are linear along the path: class j wins at t = gap(0) / (gap(0) - gap(1)) where gap changes its sign.
    gap0 = start.gather(1, labels[:, None]) - start
    gap1 = end.gather(1, labels[:, None]) - end
    time = torch.where(gap1 < 0, gap0 / (gap0 - gap1), torch.inf).amin(1)
    expected = time * (0.5 - images).flatten(1).norm(dim=1)
    distance, _ = run(filters.ContrastReductionAttack(steps, bisections), model, images, labels)
    assert (labels == 0).any()
    assert (labels != 0).any()
    assert torch.equal(distance.isinf(), labels == 0)
    hit = labels != 0
    assert (distance[hit] >= expected[hit] * (1 - 1e-4)).all()
    step = 1 / steps / 2**bisections
    assert (distance[hit] <= expected[hit] + step * 1.01 * (0.5 - images[hit]).flatten(1).norm(dim=1)).all()


def test_gradients_of_very_sure_models_do_not_vanish() -> None:
    model, images, labels, expected = linear_problem(2)
    model.weight.data *= 1e4
    model.bias.data *= 1e4
    assert (F.softmax(model(images), 1).amax(1) == 1).all()  # cross-entropy is exactly 0
    for name in ("fgsm", "pgd", "ddn", "fmn"):
        found = smallest_perturbations(model, images, labels, name, budget="quick", repeats=1)
        assert (found.distance <= expected * 2).all(), name


# --- properties -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_attacks_repeat_themselves_and_judge_images_alone(name: str) -> None:
    model, images, labels = curved_problem()
    attack = find_attack(name).build("quick")
    torch.manual_seed(1)
    first, _ = run(attack, model, images, labels)
    torch.manual_seed(2)
    np.random.seed(2)
    second, _ = run(attack, model, images, labels)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = torch.cat([run(attack, model, images[i : i + 1], labels[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(alone, first[:4], rtol=1e-3, atol=1e-4)


class Ball(nn.Module):
    """Class 1 in a small ball, class 0 elsewhere: no noise ever finds the way from class 0 to class 1."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x - self.centre).flatten(1).norm(dim=1)
        return torch.stack([torch.zeros_like(distance), 0.3 - distance], dim=1)


@pytest.mark.parametrize("name", [n for n in USUAL if find_attack(n).group != "white-box"])
def test_failures_are_the_images_own(name: str) -> None:
    centre = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(4))
    far = 1 - centre.round()
    images, labels = torch.stack([far, centre, far]), torch.tensor([0, 1, 0])
    found = smallest_perturbations(Ball(centre), images, labels, name, budget="quick", repeats=1)
    assert found.clean.all()
    assert np.isinf(found.distance[[0, 2]]).all()
    assert 0.299 < found.distance[1] < 8
    np.testing.assert_array_equal(found.images[[0, 2]], images[[0, 2]].numpy())


class Constant(nn.Module):
    """Always class 1, whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor([0.0, 1.0, 0.5]) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", USUAL)
def test_nothing_to_find_and_nothing_to_do(name: str) -> None:
    images = torch.rand(4, 1, 6, 6)
    found = smallest_perturbations(Constant(), images, torch.tensor([1, 1, 0, 1]), name, budget="quick", repeats=1)
    assert found.clean.tolist() == [True, True, False, True]
    assert found.distance.tolist() == [np.inf, np.inf, 0, np.inf]
    np.testing.assert_array_equal(found.images, images.numpy())
    wrong = smallest_perturbations(Constant(), images, torch.zeros(4, dtype=int), name, budget="quick", repeats=1)
    assert not wrong.distance.any()


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 1, 1)])
def test_odd_shapes(name: str, shape: tuple[int, int, int]) -> None:
    model = Linear(3, shape)
    images = torch.rand(5, *shape)
    labels, expected = model.distances(images)
    found: Perturbations = smallest_perturbations(model, images, labels, name, budget="quick", repeats=1)
    assert (found.distance >= expected.numpy() * (1 - 1e-4)).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()


def test_other_criteria_are_refused() -> None:
    model, images, labels = curved_problem()
    criterion = foolbox.criteria.TargetedMisclassification(labels)
    with pytest.raises(OptionError, match="Misclassification"):
        filters.ContrastReductionAttack().run(foolbox_model(model), images, criterion)
    with pytest.raises(TypeError, match="unexpected"):
        filters.ContrastReductionAttack().run(foolbox_model(model), images, labels, colour="red")


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_search_keeps_the_nearest_of_many_candidates(chunk: int) -> None:
    images = torch.full((3, 1, 1, 2), 0.5)
    search = Search(
        lambda x: torch.stack([1.5 - x.sum((1, 2, 3)), x.sum((1, 2, 3)) - 1.5], 1), images, torch.zeros(3).long()
    )
    search.chunk = chunk
    rows = torch.tensor([1, 0, 1, 1, 0, 1])
    values = torch.tensor([[1.0, 1.0], [0.9, 0.5], [0.9, 0.9], [0.9, 0.9], [0.5, 0.95], [0.6, 0.6]])
    hits = search.offer(values[:, None, None], rows)
    assert hits.tolist() == [True, False, True, True, False, False]
    torch.testing.assert_close(search.best[:, 0, 0], torch.tensor([[0.5, 0.5], [0.9, 0.9], [0.5, 0.5]]))
    assert search.open_rows().tolist() == [0, 2]
    assert not search.offer(values[:1, None, None], torch.tensor([1])).any()  # farther than what is known
