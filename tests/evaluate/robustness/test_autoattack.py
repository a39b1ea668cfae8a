"""AutoAttack through the suite against its authors' code by itself, on one network."""

import numpy as np
import pytest
import torch
from blobs import blobs, trained
from torch import Tensor, nn

from bu2td.errors import MissingPackageError
from bu2td.evaluate.robustness.registry import AUTOATTACK, find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations


@pytest.fixture
def package() -> object:
    return pytest.importorskip("pyautoattack", reason="AutoAttack is an extra")


class Padded(nn.Module):
    """The network of 12 x 12 images on 15 x 15, whose sides Square's tiles fit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[..., 1:13, 1:13])


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = blobs(12, 5)
    return Padded(trained()).eval(), nn.functional.pad(images, (1, 2, 1, 2)), labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "radii"),
    [("autoattack-l2", "L2", (0.5, 1.0)), ("autoattack-linf", "Linf", (32 / 255, 64 / 255))],
)
def test_robust_accuracy_is_that_of_the_standard_version(
    package: object, name: str, norm: str, radii: tuple[float, ...]
) -> None:
    model, images, labels = problem()
    found = smallest_perturbations(model, images, labels, name, budget="full", batch_size=12)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for radius in radii:
        attack = package.AutoAttack(model, norm=norm, eps=radius, seed=0, version="standard")
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 3  # of four classes
        adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=12)
        theirs = (model(adversarial).argmax(1) == labels).numpy()
        ours = found.distance > radius * 1.002
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 1
        assert (ours != theirs).sum() <= 1
    assert (found.distance > radii[0] * 1.002).any()


@pytest.mark.parametrize("name", AUTOATTACK)
def test_perturbations_lie_on_or_in_the_first_radius_that_fools(package: object, name: str) -> None:
    model, images, labels = problem()
    attack = find_attack(name)
    found = smallest_perturbations(model, images, labels, name, budget="quick", batch_size=12, repeats=3)
    order = 2 if attack.norm == "l2" else np.inf
    change = (found.images.astype(np.float64) - images.numpy()).reshape(12, -1)
    fooled = found.clean & np.isfinite(found.distance)
    np.testing.assert_allclose(found.distance[fooled], np.linalg.norm(change[fooled], order, axis=1))
    assert fooled.sum() > 5
    assert (model(torch.from_numpy(found.images)).argmax(1) != labels).numpy()[fooled].all()
    assert not found.converged[fooled].any()
    radii = attack.quick["smallest"] * 2.0 ** np.arange(attack.quick["radii"])
    assert (found.distance[fooled] <= radii[-1] * 1.002).all()
    again = smallest_perturbations(model, images, labels, name, budget="quick", batch_size=12, repeats=1)
    np.testing.assert_array_equal(found.distance, again.distance)  # one run is enough


@pytest.mark.parametrize("name", AUTOATTACK)
@pytest.mark.parametrize(("classes", "shape"), [(2, (1, 12, 12)), (3, (3, 5, 8)), (5, (1, 1, 1))])
def test_few_classes_and_odd_shapes(package: object, name: str, classes: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))
    images = torch.rand(4, *shape)
    found = smallest_perturbations(model, images, model(images).argmax(1), name, budget="quick")
    assert found.clean.all()
    assert not found.dropped.any()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    model, images, labels = problem()
    with pytest.raises(MissingPackageError, match=r"AutoAttack needs .*pip install .*autoattack"):
        smallest_perturbations(model, images, labels, "autoattack-l2")
