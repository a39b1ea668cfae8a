"""Every attack against what is known without it: closed forms, brute force, scipy, Foolbox's own attacks."""

import json
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
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
    import eagerpy as ep
    import foolbox

    from bu2td.evaluate.robustness import filters, geometry, gradient, pixels, walks

#: Those that need no package of their own.
USUAL = [name for name in ATTACKS if name not in AUTOATTACK]
DETERMINISTIC = [name for name, attack in ATTACKS.items() if attack.deterministic]


class Linear(nn.Module):
    """Logits W x + b; the nearest point of class j is (z_y - z_j) / ||w_y - w_j|| away."""

    def __init__(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = int(np.prod(shape))
        self.weight = nn.Parameter(10 * torch.randn(classes, size, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)  # all classes meet at grey

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)

    def distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, and the least distance to another class."""
        logits = self(x).detach()
        labels = logits.argmax(1)
        gaps = logits.gather(1, labels[:, None]) - logits
        lengths = (self.weight[labels][:, None] - self.weight[None]).detach().norm(dim=2)
        return labels, (gaps / lengths).masked_fill(F.one_hot(labels, logits.shape[1]).bool(), torch.inf).amin(1)


def linear_problem(classes: int, count: int = 8, shape: tuple[int, int, int] = (1, 4, 4)) -> tuple:
    model = Linear(classes, shape)
    images = 0.3 + 0.4 * torch.rand(20 * count, *shape, generator=torch.Generator().manual_seed(1))
    labels, distance = model.distances(images)
    some = ((distance > 0.05) & (distance < 0.25)).nonzero()[:count, 0]  # the nearest point lies inside the box
    assert len(some) == count
    return model, images[some], labels[some], distance[some].numpy()


class Curved(nn.Module):
    """A small network with random weights and biases, of any image size."""

    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 6, 3, padding=1)
            self.last = nn.Linear(6 * 4, classes)
            images = torch.rand(64, channels, 6, 6)
            nn.init.normal_(self.last.weight, std=3.0)
        with torch.no_grad():
            self.last.bias -= self(images).mean(0)  # noise images are spread over all classes

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(torch.tanh(3 * self.conv(x)), 2).flatten(1))


def curved_problem(channels: int = 1, size: tuple[int, int] = (6, 6), count: int = 12) -> tuple:
    model = Curved(channels)
    images = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(2))
    return model, images, model(images).argmax(1)


def foolbox_model(model: nn.Module) -> foolbox.PyTorchModel:
    return foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")


def run(attack: object, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (inf where the attack fails) and images."""
    found, _, success = attack(foolbox_model(model), images, labels, epsilons=None)
    distance = (found - images).flatten(1).norm(dim=1)
    return torch.where(success, distance, torch.inf).detach(), found.detach()


# --- the registry -------------------------------------------------------------------------------------


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


# --- closed forms -------------------------------------------------------------------------------------


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
    assert np.isfinite(found.distance).any() or name in ("gaussian-blur", "contrast-reduction")
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


# --- brute force --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, (6, 6)), (3, (4, 5))])
def test_single_pixel_against_brute_force(channels: int, size: tuple[int, int]) -> None:
    model, images, labels = curved_problem(channels, size)
    distance, found = run(pixels.SinglePixelAttack(32), model, images, labels)
    expected = torch.full((len(images),), torch.inf)
    for y, x, value in product(range(size[0]), range(size[1]), (0.0, 1.0)):
        changed = images.clone()
        changed[:, :, y, x] = value
        fooled = model(changed).argmax(1) != labels
        length = (changed - images).flatten(1).norm(dim=1)
        expected = torch.where(fooled & (length < expected), length, expected)
    assert 0 < expected.isfinite().sum() < len(images)
    torch.testing.assert_close(distance, expected)
    assert ((found != images).any(1).flatten(1).sum(1) <= 1).all()


def test_single_pixel_lattice() -> None:
    model, images, labels = curved_problem(1, (9, 9))
    _, found = run(pixels.SinglePixelAttack(3), model, images, labels)
    places = (found != images).nonzero()[:, 2:]
    assert len(places)
    assert set(places.flatten().tolist()) <= {0, 4, 8}


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Roll, then blacken what has come round."""
    moved = np.roll(image, (down, right), (-2, -1))
    rows, columns = np.arange(image.shape[-2]), np.arange(image.shape[-1])
    inside = ((rows - down >= 0) & (rows - down < len(rows)))[:, None]
    inside = inside & ((columns - right >= 0) & (columns - right < len(columns)))
    return np.where(inside, moved, 0)


def test_shifts_against_brute_force() -> None:
    model, images, labels = curved_problem(2, (6, 7))
    distance, _ = run(geometry.SpatialAttack(2, 0, 5, 1), model, images, labels)
    expected = torch.full((len(images),), torch.inf)
    for down, right in product(range(-2, 3), repeat=2):
        moved = torch.from_numpy(shifted(images.numpy(), down, right))
        length = (moved - images).flatten(1).norm(dim=1)
        fooled = model(moved).argmax(1) != labels
        expected = torch.where(fooled & (length < expected), length, expected)
    assert expected.isfinite().any()
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-5)


def test_spatial_is_never_farther_than_foolbox() -> None:
    model, images, labels = curved_problem(1, (8, 8), 24)
    ours, _ = run(geometry.SpatialAttack(3, 10, 7, 5), model, images, labels)
    theirs = foolbox.attacks.SpatialAttack(3, 10, 7, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid without indexing
        found, _, success = theirs(foolbox_model(model), images, labels)
    first = torch.where(success, (found - images).flatten(1).norm(dim=1), torch.inf)
    assert success.any()
    # Foolbox shifts by 2 / n of the image per pixel on a grid of 2 / (n - 1), so that the two differ a little.
    assert (ours <= first * 1.1).float().mean() > 0.9


@pytest.mark.parametrize("degrees", [0.0, 5.0, -37.0, 90.0])
@pytest.mark.parametrize("move", [(0.0, 0.0), (1.0, -2.0), (0.4, 1.7)])
def test_rotation_and_shift_against_scipy(degrees: float, move: tuple[float, float]) -> None:
    image = torch.rand(2, 1, 7, 9)
    ours = geometry.rotate_and_shift(image, torch.full((2,), degrees), torch.tensor([move, move]))
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = np.array([3.0, 4.0])
    offset = centre - matrix @ (centre + move)
    for i in range(2):
        theirs = ndimage.affine_transform(image[i, 0].numpy(), matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(ours[i, 0].numpy(), theirs, atol=1e-5)


def test_rotation_is_counter_clockwise() -> None:
    image = torch.rand(1, 2, 6, 6)
    turned = geometry.rotate_and_shift(image, torch.tensor([90.0]), torch.zeros(1, 2))
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 2.7, 9.0, 40.0])
def test_blur_against_scipy(sigma: float) -> None:
    images = torch.rand(3, 2, 9, 12)
    sigmas = torch.tensor([sigma, 2 * sigma, sigma])
    blurred = filters.gaussian_blur(images, sigmas)
    for i in range(3):
        for channel in range(2):
            expected = ndimage.gaussian_filter(images[i, channel].double().numpy(), float(sigmas[i]))
            np.testing.assert_allclose(blurred[i, channel].numpy(), expected, atol=2e-5)


def test_blur_attack_finds_foolboxs_first_hit() -> None:
    model, images, labels = curved_problem(1, (10, 10), 24)
    ours, _ = run(filters.GaussianBlurAttack(50, 0), model, images, labels)
    theirs, _ = run(
        foolbox.attacks.GaussianBlurAttack(steps=50, distance=foolbox.distances.l2), model, images, labels
    )
    assert ours.isfinite().any()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_contrast_attack_finds_foolboxs_first_hit() -> None:
    model, images, labels = curved_problem()
    ours, _ = run(filters.ContrastReductionAttack(100, 0), model, images, labels)
    attack = foolbox.attacks.LinearSearchContrastReductionAttack(steps=100, distance=foolbox.distances.l2)
    theirs, _ = run(attack, model, images, labels)
    known = theirs.isfinite()  # theirs does not try the last step
    assert known.any()
    torch.testing.assert_close(ours[known], theirs[known], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("greatest", [5.0, 0.3])
@pytest.mark.parametrize("steps", range(1, 12))
def test_grids_hold_zero_and_both_ends(steps: int, greatest: float) -> None:
    values = geometry.symmetric(greatest, steps)
    assert 0 in values
    assert len(values.unique()) == len(values) == steps + (steps % 2 == 0)
    torch.testing.assert_close(values, -values.flip(0), rtol=0, atol=0)
    assert torch.equal(values, values.sort().values)
    expected = torch.linspace(-greatest, greatest, steps) if steps > 1 else torch.zeros(1)
    assert all((values - value).abs().min() < 1e-6 for value in expected)
    assert values.abs().max() == (greatest if steps > 1 else 0)


@pytest.mark.parametrize(("shift_steps", "angle_steps"), [(2, 2), (4, 6), (3, 1), (1, 4)])
def test_the_identity_is_tried(shift_steps: int, angle_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every shift without a rotation, every rotation without a shift."""
    tried = []
    monkeypatch.setattr(
        geometry, "rotate_and_shift", lambda x, d, p: tried.append(torch.cat([d[:, None], p], 1)) or x
    )
    model, images, labels = curved_problem(1, (6, 6), 2)
    run(geometry.SpatialAttack(2, 10, shift_steps, angle_steps), model, images, labels)
    moves = {tuple(move) for move in torch.cat(tried).tolist()}
    values = [
        {0.0} if steps == 1 else {0.0, *torch.linspace(-greatest, greatest, steps).tolist()}
        for greatest, steps in ((10.0, angle_steps), (2.0, shift_steps), (2.0, shift_steps))
    ]
    expected = torch.tensor(sorted(product(*values)))
    torch.testing.assert_close(torch.tensor(sorted(moves)), expected, rtol=0, atol=1e-5)
    assert (0.0, 0.0, 0.0) in moves


def test_ddn_is_foolboxs_where_the_model_is_not_too_sure() -> None:
    model, images, labels = curved_problem()
    logits = model(images)
    assert (logits.amax(1) - logits.amin(1)).max() < 15
    ours, _ = run(gradient.DDNAttack(60, 1.0, 0.1), model, images, labels)
    theirs, _ = run(foolbox.attacks.DDNAttack(steps=60, init_epsilon=1.0, gamma=0.1), model, images, labels)
    assert theirs.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fmn_projects_onto_the_ball() -> None:
    """Foolbox's own does not, and stops at what it comes past first."""
    attack = gradient.FMNAttack().inner
    base = torch.rand(4, 1, 3, 3)
    change = torch.randn(4, 1, 3, 3)
    size = torch.tensor([0.1, 1.0, 100.0, 0.5])
    moved = attack.project(ep.astensor(base + change), ep.astensor(base), ep.astensor(size)).raw - base
    lengths = change.flatten(1).norm(dim=1)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), (1.01 * size).minimum(lengths), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.normalize(moved.flatten(1)), F.normalize(change.flatten(1)), rtol=1e-4, atol=1e-5)
    model, images, labels = curved_problem()
    ours, _ = run(gradient.FMNAttack(60), model, images, labels)
    theirs, _ = run(foolbox.attacks.L2FMNAttack(steps=60), model, images, labels)
    assert (ours <= theirs * 1.001).all()
    assert ours.median() < 0.9 * theirs.median()
    ddn, _ = run(gradient.DDNAttack(300), model, images, labels)
    assert (ours <= ddn * 1.02).float().mean() > 0.9


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_full_budget_is_at_least_as_strong(name: str) -> None:
    model, images, labels = curved_problem(1, (10, 10), 16)
    quick = smallest_perturbations(model, images, labels, name, budget="quick").distance
    full = smallest_perturbations(model, images, labels, name, budget="full").distance
    assert (full <= quick * 1.01).all()
    assert np.isfinite(full).any()


# --- walks that come to rest --------------------------------------------------------------------------


def watched(distances: list[list[float]], hits: list[list[bool]]) -> list[bool]:
    """What is said of a walk whose questions have these distances."""
    images = torch.zeros(len(distances[0]), 1, 1, 1)
    watch = walks._Watched(torch.zeros(len(images), dtype=torch.long), images)
    for row, hit in zip(distances, hits, strict=True):
        watch(
            ep.astensor(torch.tensor(row)[:, None, None, None]), ep.astensor(F.one_hot(torch.tensor(hit).long(), 2))
        )
    return watch.at_rest().tolist()


def test_a_walk_has_come_to_rest_if_its_second_half_brings_nothing() -> None:
    asked = [[9.0, 9.0, 9.0], [5.0, 5.0, 5.0], [4.98, 4.0, 1.0], [4.97, 6.0, 0.5]]
    hits = [[True] * 3, [True] * 3, [True, True, False], [True, True, False]]
    assert watched(asked, hits) == [True, False, True]


@pytest.mark.parametrize(("steps", "rest"), [(200, False), (2000, True)])
def test_boundary_converges_on_one_pixel(steps: int, rest: bool) -> None:
    """One value decides, so that the walk is along a line and soon at its end; but short walks never count."""
    model = Linear(2, (1, 1, 2))
    model.weight.data, model.bias.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0.5, -0.5])
    attack = walks.BoundaryAttack(steps=steps)
    images = torch.full((3, 1, 1, 2), 0.3)
    distance, _ = run(attack, model, images, torch.zeros(3, dtype=torch.long))
    assert attack.converged.tolist() == [rest] * 3
    if rest:
        assert (distance < 0.2 * 1.02).all()


def test_hop_skip_jump_in_three_steps_has_not_come_to_rest() -> None:
    model, images, labels = curved_problem()
    attack = find_attack("hop-skip-jump").build("quick")
    torch.manual_seed(0)
    np.random.seed(0)
    distance, _ = run(attack, model, images, labels)
    better, _ = run(walks.HopSkipJumpAttack(40, 100), model, images, labels)
    far = distance > 1.2 * better
    assert far.any()
    assert not attack.converged[far].any()


# --- properties ---------------------------------------------------------------------------------------


def test_pointwise_leaves_only_values_that_are_needed() -> None:
    model, images, labels = curved_problem(2, (5, 5))
    _, found = run(walks.PointwiseAttack(100, passes=20, bisections=0), model, images, labels)
    checked = 0
    for image, adversarial, label in zip(images, found, labels, strict=True):
        for place in (image != adversarial).nonzero():
            trial = adversarial.clone()
            trial[tuple(place)] = image[tuple(place)]
            assert model(trial[None]).argmax() == label
            checked += 1
    assert checked > len(images)


class Weighed(nn.Module):
    """Class 1 once the weighed sum of all values is above 1; every weight is positive."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.rand(size, generator=torch.Generator().manual_seed(6)) ** 4  # many light ones, a few heavy
        self.register_buffer("weight", 2 * weight / weight.sum())

    def forward(self, x: Tensor) -> Tensor:
        heavy = (x.flatten(1) * self.weight).sum(1) - 1
        return torch.stack([-heavy, heavy], 1)


def test_one_pass_of_pointwise_is_enough_where_values_only_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def white(search: Search, steps: int) -> Tensor:
        search.offer(torch.ones_like(search.images), torch.arange(len(search.images)))
        return search.hit_rows()

    monkeypatch.setattr(walks, "find_starts", white)
    model, images, labels = Weighed(49), torch.zeros(50, 1, 7, 7), torch.zeros(50, dtype=torch.long)
    _, found = run(walks.PointwiseAttack(passes=1, bisections=0), model, images, labels)
    assert len(found.flatten(1).unique(dim=0)) > 25
    for image in found:
        weights = model.weight[image.flatten() > 0]
        assert weights.sum() > 1
        assert weights.sum() - weights.min() <= 1  # none of them can be spared


def test_pointwise_is_near_foolboxs_own() -> None:
    model, images, labels = curved_problem(1, (6, 6))
    theirs = foolbox.attacks.PointwiseAttack(init_attack=foolbox.attacks.SaltAndPepperNoiseAttack(steps=100))
    np.random.seed(0)
    start = theirs.run(foolbox_model(model), images, labels)
    far = (start - images).flatten(1).norm(dim=1)
    ours, _ = run(walks.PointwiseAttack(100, passes=5), model, images, labels)
    assert ours.isfinite().all()
    assert ours.median() < 1.15 * far.median()


def test_shrinking_values_brings_them_nearer() -> None:
    model, images, labels = curved_problem(1, (6, 6))
    torch.manual_seed(0)
    without, _ = run(walks.PointwiseAttack(100, 3, 0), model, images, labels)
    torch.manual_seed(0)
    with_, _ = run(walks.PointwiseAttack(100, 3, 8), model, images, labels)
    assert with_.mean() < without.mean()


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
