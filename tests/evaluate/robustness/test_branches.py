"""Perturbations in single branches of the pyramid."""

import numpy as np
import pytest
import torch
from blobs import blobs, train
from torch import Tensor, nn

import bu2td
from bu2td.errors import DataError, ExampleInputError, OptionError
from bu2td.evaluate.robustness.branches import branch_accuracy, branch_names
from bu2td.evaluate.robustness.smallest import smallest_perturbations
from bu2td.models.baselines import LeNetFC

GOOD = torch.full((2, 1, 12, 12), 0.5)
ZEROS = torch.zeros(2, dtype=torch.long)


@pytest.fixture(scope="module")
def top_down() -> bu2td.TopDownNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = bu2td.convert(LeNetFC(4), example_inputs=torch.zeros(1, 1, 12, 12), seed=0)
    train(network, 3)
    return network


class Around(nn.Module):
    """A classifier with its normalisation inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def prepare(self, x: Tensor) -> Tensor:
        return x - 0.02

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.prepare(x))

    def forward_branches(self, images: list[Tensor]) -> Tensor:
        return self.network.forward_branches([self.prepare(image) for image in images])


@pytest.mark.parametrize("wrapped", [False, True])
def test_branches(top_down: bu2td.TopDownNetwork, wrapped: bool) -> None:
    classifier = Around(top_down) if wrapped else top_down
    clean, labels = blobs(30, 2)
    noise = (clean + 0.6 * torch.randn_like(clean)).clamp(0, 1)
    classifier.eval()
    before = float((classifier(clean).argmax(1) == labels).double().mean())
    classifier.train()
    rows = branch_accuracy(classifier, clean, noise, labels, scales=(1.0,), batch_size=7)
    assert classifier.training
    classifier.eval()
    assert [(row["inputs"], row["reductions"]) for row in rows] == [
        ("none", ""),
        ("highest", "1"),
        ("medium", "2"),
        ("lowest", "4"),
        ("highest+medium", "1+2"),
        ("highest+lowest", "1+4"),
        ("medium+lowest", "2+4"),
        ("all", "1+2+4"),
    ]
    assert all(row["samples"] == 30 for row in rows)
    assert rows[0]["accuracy"] == before > 0.4
    assert rows[-1]["accuracy"] == float((classifier(noise).argmax(1) == labels).double().mean())
    for row in rows:
        where = {int(r) for r in row["reductions"].split("+") if r}
        logits = classifier.forward_branches([noise if r in where else clean for r in (4, 2, 1)])
        assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert len({row["accuracy"] for row in rows}) > 3


@pytest.mark.parametrize(
    ("ladder", "names"),
    [
        ((1,), {1: "highest"}),
        ((4, 2), {2: "highest", 4: "lowest"}),
        ((4, 2, 1), {1: "highest", 2: "medium", 4: "lowest"}),
        ((32, 16, 8, 4), {4: "highest", 8: "r8", 16: "r16", 32: "lowest"}),
    ],
)
def test_branch_names(ladder: tuple[int, ...], names: dict[int, str]) -> None:
    assert branch_names(ladder) == names
    assert list(branch_names(ladder)) == sorted(ladder)


class Ladder(nn.Module):
    """Stands for a network with any pyramid: logits from the mean of its branches."""

    def __init__(self, ladder: tuple[int, ...]) -> None:
        super().__init__()
        self.plan = type("Plan", (), {"ladder": ladder})

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_branches([x] * len(self.plan.ladder))

    def forward_branches(self, images: list[Tensor]) -> Tensor:
        bright = torch.stack([image.mean((1, 2, 3)) for image in images]).mean(0)
        return torch.stack([bright - 0.5, 0.5 - bright], 1)


@pytest.mark.parametrize(("ladder", "count"), [((1,), 3), ((2, 1), 4), ((8, 4, 2, 1), 1 + 4 + 6 + 1)])
def test_other_pyramids(ladder: tuple[int, ...], count: int) -> None:
    rows = branch_accuracy(Ladder(ladder), GOOD + 0.4, GOOD - 0.5, ZEROS, scales=[1])
    assert len(rows) == count == len({row["inputs"] for row in rows})
    assert rows[0]["accuracy"] == 1
    assert rows[-1]["accuracy"] == 0


def test_bad_branches(top_down: bu2td.TopDownNetwork) -> None:
    for model in (LeNetFC(), Around(LeNetFC())):
        with pytest.raises(OptionError, match=r"only a top-down network.*LeNetFC"):
            branch_accuracy(model, GOOD, GOOD, ZEROS)
    with pytest.raises(OptionError, match="differ in shape"):
        branch_accuracy(top_down, GOOD, GOOD[..., 1:], ZEROS)
    with pytest.raises(OptionError, match="labels"):
        branch_accuracy(top_down, GOOD, GOOD, ZEROS[1:])
    with pytest.raises(ExampleInputError, match="must lie in"):
        branch_accuracy(top_down, GOOD, GOOD * 3, ZEROS)
    with pytest.raises(DataError, match="4 classes"):
        branch_accuracy(top_down, GOOD, GOOD, ZEROS + 10)
    for scale in (0, -1.0, np.inf, np.nan):
        with pytest.raises(OptionError, match="scales must be positive"):
            branch_accuracy(top_down, GOOD, GOOD, ZEROS, scales=(1.0, scale))


class Weighed(Ladder):
    """Class 1 once the mean of the branches, coarse to fine weighed 1, 2, 3, is above a border."""

    def forward_branches(self, images: list[Tensor]) -> Tensor:
        weighed = sum(w * image.mean((1, 2, 3)) for w, image in zip((1, 2, 3), images, strict=True)) / 6
        return torch.stack([0.301 - weighed, weighed - 0.301], 1)


def test_scales_find_the_weights_of_branches() -> None:
    """From 0.2 in steps of 0.1 past 0.301: each branch's share times the scale must come to just more than 1."""
    clean = torch.full((3, 1, 4, 4), 0.2)
    perturbed = clean + 0.102
    perturbed[2] = clean[2]  # nothing was found
    rows = branch_accuracy(Weighed((4, 2, 1)), clean, perturbed, torch.zeros(3).long())
    assert {row["samples"] for row in rows} == {2}
    shares = {"none": 0, "lowest": 1, "medium": 2, "highest": 3}
    found = {(row["inputs"], row["scale"]): row["accuracy"] for row in rows}
    assert len(found) == 4 * 8
    for (inputs, scale), accuracy in found.items():
        share = 6 if inputs == "all" else sum(shares[name] for name in inputs.split("+"))
        assert accuracy == (share / 6 * scale * 0.102 <= 0.101), (inputs, scale)
    assert found["highest", 1.5] == 1
    assert found["highest", 2.0] == 0


def test_scaled_perturbations_are_clipped() -> None:
    seen = []

    class Watching(Ladder):
        def forward_branches(self, images: list[Tensor]) -> Tensor:
            seen.extend(images)
            return super().forward_branches(images)

    branch_accuracy(Watching((2, 1)), GOOD, (GOOD + 0.4) * torch.rand_like(GOOD), ZEROS, scales=(5.0,))
    assert min(float(x.min()) for x in seen) == 0
    assert max(float(x.max()) for x in seen) == 1


def test_nothing_was_found() -> None:
    rows = branch_accuracy(Ladder((2, 1)), GOOD, GOOD.clone(), ZEROS)
    assert {row["samples"] for row in rows} == {0}
    assert all(np.isnan(row["accuracy"]) for row in rows)


def test_network_under_attack_and_its_branches(top_down: bu2td.TopDownNetwork) -> None:
    images, labels = blobs(20, 3)
    found = smallest_perturbations(top_down, images, labels, "fgsm", budget="quick", batch_size=8)
    assert np.isfinite(found.distance).mean() > 0.9
    rows = branch_accuracy(top_down, images, torch.from_numpy(found.images), labels, batch_size=8)
    fooled = found.clean & np.isfinite(found.distance)
    assert fooled.any()
    assert {row["samples"] for row in rows} == {int(fooled.sum())}
    every = {(row["inputs"], row["scale"]): row["accuracy"] for row in rows}
    assert every["none", 1.0] == 1
    assert every["all", 1.0] == 0
