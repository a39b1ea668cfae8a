"""Kinds of attacks one by one: brute force, scipy, Foolbox's own attacks."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from problems import Linear, curved_problem, foolbox_model, run
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from bu2td.evaluate.robustness.candidates import Search
from bu2td.evaluate.robustness.registry import ATTACKS, find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import eagerpy as ep
    import foolbox

    from bu2td.evaluate.robustness import filters, geometry, gradient, pixels, walks

DETERMINISTIC = [name for name, attack in ATTACKS.items() if attack.deterministic]


# --- brute force ------------------------------------------------------------------------------------


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


# --- values that are undone -------------------------------------------------------------------------


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


# --- walks that come to rest ------------------------------------------------------------------------


def watched(distances: list[list[float]], hits: list[list[bool]]) -> list[bool]:
    """What is said of a walk whose questions have these distances."""
    images = torch.zeros(len(distances[0]), 1, 1, 1)
    watch = walks.Watched(torch.zeros(len(images), dtype=torch.long), images)
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
