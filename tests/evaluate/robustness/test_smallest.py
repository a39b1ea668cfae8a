"""The smallest perturbations: what is kept, checked and counted, and what is refused."""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from blobs import QUICK, Small, attacked, equal
from torch import Tensor, nn

from bu2td.errors import (
    Bu2tdError,
    DataError,
    ExampleInputError,
    MissingPackageError,
    ModelOutputError,
    NonFiniteError,
    NotAModelError,
    OptionError,
)
from bu2td.evaluate.robustness.curves import join
from bu2td.evaluate.robustness.registry import ATTACKS, AUTOATTACK, Attack, find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    return attacked()


# --- what is returned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pgd", "additive-gaussian", "contrast-reduction", "pointwise", "hop-skip-jump"])
def test_distances_are_those_of_images_that_fool_the_model(problem: tuple, name: str) -> None:
    model, images, labels = problem
    found = smallest_perturbations(model, images, labels, name, **QUICK)
    assert len(found) == 22
    assert found.distance.dtype == np.float64
    assert found.images.dtype == np.float32
    right = (model(images).argmax(1) == labels).numpy()
    np.testing.assert_array_equal(found.clean, right)
    assert not right[3]
    assert 0.8 < right.mean() < 1
    difference = np.linalg.norm((found.images.astype(np.float64) - images.numpy()).reshape(22, -1), axis=1)
    finite = np.isfinite(found.distance)
    np.testing.assert_allclose(found.distance[finite], difference[finite], rtol=1e-12)
    assert not difference[~finite].any()
    assert (found.distance[~right] == 0).all()
    assert (found.distance[right] > 0).all()
    fooled = (model(torch.from_numpy(found.images)).argmax(1) != labels).numpy()
    np.testing.assert_array_equal(fooled, finite)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert (finite & right).sum() > 5


def test_more_repeats_are_never_farther(problem: tuple) -> None:
    model, images, labels = problem
    runs = [
        smallest_perturbations(model, images, labels, "salt-and-pepper", budget="quick", repeats=n) for n in (1, 3)
    ]
    assert (runs[1].distance <= runs[0].distance).all()
    assert (runs[1].distance < runs[0].distance).any()


def counting(name: str, calls: list[int]) -> Attack:
    @dataclass(frozen=True)
    class Counting(Attack):
        def build(self, budget: str = "full") -> Any:
            inner = super().build(budget)

            def attack(*args: Any, **kwargs: Any) -> Any:
                calls.append(1)
                return inner(*args, **kwargs)

            return attack

    return Counting(**vars(find_attack(name)))


@pytest.mark.parametrize(("name", "runs"), [("contrast-reduction", 1), ("additive-uniform", 3)])
def test_deterministic_attacks_run_once(problem: tuple, name: str, runs: int) -> None:
    model, images, labels = problem
    calls: list[int] = []
    smallest_perturbations(
        model, images[:6], labels[:6], counting(name, calls), repeats=3, budget="quick", batch_size=3
    )
    assert len(calls) == 2 * runs


@pytest.mark.parametrize("name", ["additive-gaussian", "pointwise", "pgd", "boundary"])
def test_seeds_reproduce_and_batches_stand_alone(problem: tuple, name: str) -> None:
    model, images, labels = problem
    whole = smallest_perturbations(model, images, labels, name, seed=3, **QUICK)
    torch.manual_seed(99)
    np.random.seed(99)
    parts = [
        smallest_perturbations(
            model, images[i : i + 8], labels[i : i + 8], name, seed=3, start_batch=i // 8, **QUICK
        )
        for i in (0, 8, 16)
    ]
    equal(whole, join(parts))
    other = smallest_perturbations(model, images, labels, name, seed=4, **QUICK)
    assert (other.distance != whole.distance).any()


def test_the_caller_finds_everything_as_it_was(problem: tuple) -> None:
    _, images, labels = problem
    model = Small()
    model.train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    model.last.bias.grad = torch.full((4,), 7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    originals = images.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for name in ("pgd", "ddn", "additive-uniform", "pointwise"):
        smallest_perturbations(model, images[:4], labels[:4], name, budget="quick", repeats=1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    assert [p.requires_grad for p in model.parameters()] == [n != "conv.bias" for n, _ in model.named_parameters()]
    assert model.last.bias.grad.tolist() == [7.0] * 4
    assert all(p.grad is None for n, p in model.named_parameters() if n != "last.bias")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(images, originals)


def test_everything_comes_back_after_an_error_too(problem: tuple) -> None:
    _, images, labels = problem
    model = Small()
    model.last.weight.data.fill_(torch.nan)
    states = torch.get_rng_state(), random.getstate()
    with pytest.raises(NonFiniteError, match="not finite numbers for 8 of 8"):
        smallest_perturbations(model, images, labels, "pgd", **QUICK)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


class Asks:
    """Asks for classes three times, and for the gradient once; per image, whatever is wrong is left out."""

    def __call__(self, model: Any, images: Tensor, labels: Tensor, epsilons: None) -> tuple[Tensor, Tensor, Tensor]:
        model(images)
        model(torch.cat([images, images]))
        points = images.clone().requires_grad_()
        model(points).sum().backward()
        return images, images, torch.zeros(len(images), dtype=torch.bool)


@dataclass(frozen=True)
class Asking(Attack):
    def build(self, budget: str = "full") -> Any:
        return Asks()


@pytest.mark.parametrize("repeats", [1, 3])
def test_questions_are_counted_and_gradients_too(problem: tuple, repeats: int) -> None:
    model, images, labels = problem
    asking = Asking(**{**vars(find_attack("pgd"))})
    found = smallest_perturbations(model, images, labels, asking, repeats=repeats, batch_size=8)
    np.testing.assert_array_equal(found.queries, np.where(found.clean, 5.0 * repeats, 0))


@pytest.mark.parametrize("name", ["ddn", "fmn"])
def test_questions_of_a_descent(problem: tuple, name: str) -> None:
    """The images, then logits and gradients at each step, the best, and what Foolbox looks at last."""
    found = smallest_perturbations(*problem, name, budget="quick", repeats=1)
    steps = find_attack(name).settings("quick")["steps"]
    np.testing.assert_allclose(found.queries[found.clean], 1 + 2 * steps + 1 + 1)


@pytest.mark.parametrize("name", ["additive-gaussian", "single-pixel", "boundary"])
def test_questions_without_gradients_are_what_the_model_sees(problem: tuple, name: str) -> None:
    model, images, labels = problem
    asked: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    found = smallest_perturbations(model, images, labels, name, budget="quick", repeats=1)
    handle.remove()
    assert asked[0] == asked[-1] == 22  # which images are right, and the second look, do not count
    looks = (sum(asked) - round(found.queries.sum())) / 22
    assert looks in (2, 3, 4)
    assert (found.queries[~found.clean] == 0).all()


class Brightness(nn.Module):
    """Class 1 above a mean of 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-margin, margin], 1)


def test_convergence_is_that_of_the_nearest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(0.8, [True] * 3), (0.6, [False, True, False]), (0.7, [True] * 3)])

    class Walk:
        def __call__(self, model: Any, images: Tensor, labels: Tensor, epsilons: None) -> Any:
            value, rest = next(runs)
            self.converged = torch.tensor(rest)
            found = torch.full_like(images, value)
            return found, found, torch.ones(len(images), dtype=torch.bool)

    monkeypatch.setattr(Attack, "build", lambda self, budget: Walk())
    images = torch.full((4, 1, 2, 2), 0.3)
    images[1] = 0.9  # wrong without any
    found = smallest_perturbations(Brightness(), images, torch.zeros(4).long(), "pgd", repeats=3)
    np.testing.assert_allclose(found.distance, [0.6, 0, 0.6, 0.6], rtol=1e-6)
    assert found.converged.tolist() == [False, True, True, False]


class Lies:
    """Claims success for every image: half of them unchanged, one of them not a number."""

    def __call__(self, model: Any, images: Tensor, labels: Tensor, epsilons: None) -> tuple[Tensor, Tensor, Tensor]:
        found = images.clone()
        found[1::2] = 1 - found[1::2]
        found[0, 0, 0, 0] = torch.nan
        return found, found, torch.ones(len(images), dtype=torch.bool)


@dataclass(frozen=True)
class Lying(Attack):
    def build(self, budget: str = "full") -> Any:
        return Lies()


def test_claims_that_do_not_hold_are_dropped_and_counted(problem: tuple) -> None:
    model, images, labels = problem
    lying = Lying(**{**vars(find_attack("shifts")), "deterministic": False})
    found = smallest_perturbations(model, images, labels, lying, repeats=3)
    rows = np.flatnonzero(found.clean)
    assert np.isinf(found.distance[rows[0::2]]).all()
    assert (found.dropped[rows[0::2]] == 3).all()
    inverted = (model(1 - images).argmax(1) != labels).numpy()[rows[1::2]]
    assert inverted.any()
    np.testing.assert_array_equal(np.isfinite(found.distance[rows[1::2]]), inverted)
    np.testing.assert_array_equal(found.dropped[rows[1::2]], np.where(inverted, 0, 3))
    assert found.dropped[~found.clean].sum() == 0
    assert np.isfinite(found.images).all()


class Moody(nn.Module):
    """Its boundary (mean brightness) lies a little higher in full batches, as rounding does."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 100 * (x.mean((1, 2, 3)) - 0.6 - (2e-5 if len(x) == 5 else 0.0))
        return torch.stack([-margin, margin], 1)


class Brighten:
    """Raises every pixel until a search in batches of four says that this is enough."""

    def __call__(self, model: Any, images: Tensor, labels: Tensor, epsilons: None) -> tuple[Tensor, Tensor, Tensor]:
        found = images + (0.60001 - images.mean((1, 2, 3), keepdim=True))
        return found, found, model(found).argmax(1) != labels


def test_a_hit_on_the_very_boundary_is_moved_a_little() -> None:
    images = torch.full((5, 1, 4, 4), 0.4)
    images[0] = 0.9  # wrong without an attack, so that the attack sees four images
    attack = replace(find_attack("shifts"))
    object.__setattr__(attack, "builder", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "build", lambda self, budget: Brighten())
        found = smallest_perturbations(Moody(), images, torch.zeros(5, dtype=torch.long), attack)
    assert found.clean.tolist() == [False, True, True, True, True]
    assert not found.dropped.any()
    np.testing.assert_allclose(found.distance[1:], 1.001 * 0.20001 * 4, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in AUTOATTACK])
def test_cuda_agrees_with_the_cpu(problem: tuple, name: str) -> None:
    model, images, labels = problem
    state = torch.cuda.get_rng_state()
    found = smallest_perturbations(model, images, labels, name, device="cuda", **QUICK)
    again = smallest_perturbations(model, images, labels, name, device="cuda", **QUICK)
    expected = smallest_perturbations(model, images, labels, name, **QUICK)
    assert torch.equal(state, torch.cuda.get_rng_state())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    np.testing.assert_array_equal(found.clean, expected.clean)
    np.testing.assert_allclose(found.distance, again.distance, rtol=1e-2)
    if find_attack(name).deterministic:
        np.testing.assert_allclose(found.distance, expected.distance, rtol=2e-2)


# --- bad input ----------------------------------------------------------------------------------------

GOOD = torch.full((2, 1, 12, 12), 0.5)
ZEROS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (GOOD * 3, ZEROS, ExampleInputError, r"images must lie in \[0, 1\], found values from 1.5"),
        (GOOD - 0.6, ZEROS, ExampleInputError, "found values from -0.1"),
        (GOOD * torch.nan, ZEROS, NonFiniteError, "not finite numbers"),
        (GOOD[0], ZEROS, ExampleInputError, r"images must be .*\(N, C, H, W\), found shape \(1, 12, 12\)"),
        (GOOD.long(), ZEROS, ExampleInputError, "floating point"),
        (GOOD.numpy(), ZEROS, ExampleInputError, "found .*ndarray"),
        (GOOD[:0], ZEROS[:0], ExampleInputError, r"found shape \(0, 1, 12, 12\)"),
        (GOOD, ZEROS[:1], OptionError, "one whole number per image"),
        (GOOD, ZEROS.float(), OptionError, "whole number"),
        (GOOD, ["a", "b"], OptionError, "whole numbers"),
        (GOOD, ZEROS - 1, DataError, "found -1"),
        (GOOD, ZEROS + 4, DataError, r"0 to 3, for the model has 4 classes; found 4"),
    ],
)
def test_bad_images_and_labels(images: Any, labels: Any, error: type[Bu2tdError], message: str) -> None:
    with pytest.raises(error, match=message):
        smallest_perturbations(Small(), images, labels, "pgd", budget="quick")


def test_labels_may_be_a_list(problem: tuple) -> None:
    model, images, labels = problem
    found = smallest_perturbations(model, images, labels.tolist(), "shifts", **QUICK)
    equal(found, smallest_perturbations(model, images, labels, "shifts", **QUICK))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "pgdd"}, "unknown attack 'pgdd'.*'pgd'"),
        ({"budget": "quik"}, "unknown budget 'quik'.*'quick'"),
        ({"repeats": 0}, "repeats=0 must be a whole number of at least 1"),
        ({"repeats": 1.5}, "repeats"),
        ({"batch_size": -1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"start_batch": -1}, "start_batch"),
        ({"device": "cuda:77"}, "The device 'cuda:77' cannot be used"),
        ({"device": "gpu"}, "The device 'gpu' cannot be used"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        smallest_perturbations(Small(), GOOD, ZEROS, **{"attack": "pgd", **options})


class Returns(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x)


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x,
        lambda x: (x.flatten(1),),
        lambda x: x.flatten(1)[:1],
        lambda x: x.mean((1, 2, 3), keepdim=True)[:, 0],
    ],
    ids=["maps", "tuple", "one row", "one class"],
)
def test_bad_models(what: Any) -> None:
    with pytest.raises(ModelOutputError, match="must return logits"):
        smallest_perturbations(Returns(what), GOOD, ZEROS, "shifts")
    with pytest.raises(NotAModelError, match="Module"):
        smallest_perturbations(what, GOOD, ZEROS, "shifts")


def test_logits_that_break_down_under_attack() -> None:
    model = Returns(lambda x: torch.stack([x.mean((1, 2, 3)) * 0 + 1, (0.5 - x.amin((1, 2, 3))).sqrt() * 0], 1))
    with pytest.raises(NonFiniteError, match="not finite"):
        smallest_perturbations(model, torch.full((2, 1, 1, 1), 0.2), ZEROS, "salt-and-pepper")


def test_missing_foolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith(("foolbox", "bu2td.evaluate.robustness."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingPackageError, match="pip install 'bu2td"):
        smallest_perturbations(Small(), GOOD, ZEROS, "pgd")
