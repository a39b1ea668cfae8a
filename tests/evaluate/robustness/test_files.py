"""The robustness experiment on a trained run: its parts, what becomes of them, and the tables against loops."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

for package in ("foolbox", "lightning_fabric", "sklearn"):
    pytest.importorskip(package)

import bu2td
from bu2td.errors import RunFolderError
from bu2td.evaluate.data.sets import load_data
from bu2td.evaluate.folder import open_run
from bu2td.evaluate.parts import complete, load
from bu2td.evaluate.robustness.curves import ARRAYS
from bu2td.evaluate.robustness.gather import cuts
from bu2td.evaluate.robustness.registry import find_attack
from bu2td.evaluate.robustness.smallest import smallest_perturbations
from bu2td.evaluate.robustness.stage import STAGE, collect, plan, plan_branches
from bu2td.evaluate.run import evaluate
from bu2td.evaluate.settings import read_settings
from bu2td.evaluate.stages import Context
from bu2td.models.baselines import LeNetFC

SIZE = (1, 12, 12)
TRAINED = {"data": "digits", "input_size": SIZE, "arrangements": ("bu", "td"), "repeats": 1, "epochs": 3,
           "device": "cpu", "measure_memory": False}  # fmt: skip
FEW = {"attacks": ("fgsm", "shifts", "additive-uniform"), "attack_samples": 10, "attack_batch_size": 6,
       "attack_repeats": 2}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of both kinds, without attacks."""
    folder = tmp_path_factory.mktemp("run") / "run"
    evaluate("train", read_settings(flags=TRAINED), folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def _done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("done") / "run"))
    whole(folder)
    return folder


@pytest.fixture
def done(_done: Path, tmp_path: Path) -> Path:
    """A folder of its own with both halves of the few attacks, made by one process."""
    return Path(shutil.copytree(_done, tmp_path / "done"))


def context(folder: Path, **changes: Any) -> Context:
    run = open_run(folder).with_settings(**{**FEW, **changes})
    return Context(run, load_data("digits", input_size=SIZE), SimpleNamespace(device=torch.device("cpu")))


def attack(folder: Path, shard: tuple[int, int] = (0, 1), **changes: Any) -> Context:
    """Do all parts of one process."""
    found = context(folder, **changes)
    complete(plan(found), found.run.parts("robustness"), shard=shard, progress=False)
    return found


def study(folder: Path, shard: tuple[int, int] = (0, 1), **changes: Any) -> Context:
    """The second half, when all attacks are done."""
    found = context(folder, **changes)
    complete(plan_branches(found), found.run.parts("robustness"), shard=shard, progress=False)
    return found


def whole(folder: Path, **changes: Any) -> Context:
    attack(folder, **changes)
    found = study(folder, **changes)
    collect(found)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every part and every table of the stage."""
    files = [*folder.glob("parts/robustness/**/*.npz"), *(folder / table.file for table in STAGE.tables)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""])


# --- parts ----------------------------------------------------------------------------------------------


def test_parts_hold_what_the_attack_returns(folder: Path) -> None:
    found = attack(folder)
    home = found.run.parts("robustness")
    assert sorted(path.name for path in (home / "td-0").iterdir()) == sorted(
        f"{name}-{a:06d}-{b:06d}.npz" for name in FEW["attacks"] for a, b in ((0, 6), (6, 10))
    )
    positions, images, labels = found.sample(10)
    for name in FEW["attacks"]:
        expected = smallest_perturbations(
            found.classifier("td", 0), images[6:], labels[6:], name, budget="quick", repeats=2, start_batch=6
        )
        part = load(home / "td-0" / f"{name}-000006-000010.npz")
        assert part.arrays["positions"].tolist() == positions[6:]
        for array in ARRAYS:
            np.testing.assert_array_equal(part.arrays[array], getattr(expected, array))


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shards_leave_the_same_bytes_as_one_process(folder: Path, done: Path, count: int) -> None:
    for half in (attack, study):
        for index in reversed(range(count)):
            half(folder, (index, count))
    collect(context(folder))
    assert contents(folder) == contents(done)


def test_killed_and_resumed(folder: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        calls: list[Any] = []

        def killed(*args: Any, **options: Any) -> Any:
            if len(calls) == 3:
                raise KeyboardInterrupt
            calls.append(1)
            return smallest_perturbations(*args, **options)

        patch.setattr("bu2td.evaluate.robustness.stage.smallest_perturbations", killed)
        with pytest.raises(KeyboardInterrupt):
            attack(folder)
    left = {path: path.stat().st_mtime_ns for path in folder.glob("parts/robustness/*/*.npz")}
    assert len(left) == 3
    whole(folder)
    assert all(path.stat().st_mtime_ns == time for path, time in left.items())
    assert contents(folder) == contents(done)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        *(pytest.param(d, marks=pytest.mark.slow) for d in (lambda b: b"", lambda b: b[:-200] + bytes(200))),
    ],
)
def test_a_damaged_part_is_done_anew(done: Path, damage: Any) -> None:
    before = contents(done)
    for name in ("fgsm", "branches-fgsm"):
        path = done / "parts" / "robustness" / "td-0" / f"{name}-000000-000006.npz"
        path.write_bytes(damage(path.read_bytes()))
    whole(done)
    assert contents(done) == before


@pytest.mark.parametrize(
    "sizes", [(6, 4), pytest.param((6, 6), marks=pytest.mark.slow), pytest.param((4, 7), marks=pytest.mark.slow)]
)
def test_a_run_grows(folder: Path, sizes: tuple[int, int]) -> None:
    whole(folder, attack_samples=5, attack_batch_size=sizes[0], attacks=("fgsm",))
    first = contents(folder)
    distances = table(folder, "distances").set_index(["arrangement", "repeat", "attack", "image"])
    whole(folder, attack_samples=14, attack_batch_size=sizes[1], attacks=("shifts", "fgsm"))
    second = contents(folder)
    for name in first:
        if name.startswith("parts"):
            assert second[name] == first[name]
    rows = table(folder, "robustness")
    assert set(rows.loc[rows.attack.isin(["fgsm", "shifts"]), "samples"]) == {14}
    grown = table(folder, "distances").set_index(["arrangement", "repeat", "attack", "image"])
    assert len(grown) == 14 * 2 * (2 + 3)  # two networks; two attacks and the strongest of three kinds
    pd.testing.assert_frame_equal(grown.loc[distances.index], distances)
    branches = table(folder, "branches")
    fooled = grown.loc["td"].groupby("attack").distance.apply(lambda d: int(((d > 0) & np.isfinite(d)).sum()))
    for row in branches.itertuples():
        assert row.samples == fooled[row.attack]
    whole(folder, attack_samples=3, attacks=("contrast-reduction",))  # fewer images of another attack
    rows = table(folder, "robustness").set_index(["arrangement", "attack"])
    assert rows.loc[("bu", "fgsm"), "samples"] == 14
    assert rows.loc[("bu", "contrast-reduction"), "samples"] == 3
    assert rows.loc[("td", "strongest"), "samples"] == 3  # nothing is known of the others


def test_batches_follow_what_is_there(tmp_path: Path) -> None:
    home = tmp_path / "td-0"
    home.mkdir()
    for name in ("pgd-000000-000020", "pgd-000020-000023", "pgd-000000-000010", "more-steps-pgd-000000-000005"):
        (home / f"{name}.npz").touch()
    assert cuts(tmp_path, ("td", 0), "pgd", 60, 25) == [(0, 20), (20, 23), (23, 48), (48, 60)]
    assert cuts(tmp_path, ("td", 0), "pgd", 5, 25) == [(0, 20)]
    assert cuts(tmp_path, ("td", 0), "more-steps-pgd", 6, 25) == [(0, 5), (5, 6)]
    assert cuts(tmp_path, ("bu", 0), "pgd", 60, 25) == [(0, 25), (25, 50), (50, 60)]


def test_other_settings_are_refused_before_any_work(folder: Path) -> None:
    attack(folder, attack_arrangements=("bu",))
    before = {path: path.read_bytes() for path in folder.glob("parts/**/*.npz")}
    for changes in ({"attack_budget": "full"}, {"attack_repeats": 1}):
        for arrangements in (
            ("bu",),
            ("td",),
        ):  # of the same network, and of one that could not be compared with it
            with pytest.raises(RunFolderError, match=r"was made with .*no table can hold both.*--overwrite"):
                attack(folder, **changes, attack_arrangements=arrangements)
    assert {path: path.read_bytes() for path in folder.glob("parts/**/*.npz")} == before
    attack(folder, attack_repeats=1, attacks=("fgsm", "shifts"))  # of deterministic attacks one run is enough


def test_results_of_other_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack(folder, attacks=("shifts",))
    original = Context.classifier

    def other(self: Context, *network: Any) -> Any:
        model = original(self, *network)
        next(model.parameters()).data.mul_(1.5)
        return model

    monkeypatch.setattr(Context, "classifier", other)
    with pytest.raises(RunFolderError, match="differs in weights"):
        attack(folder, attacks=("shifts",))
    found = attack(folder, attacks=("contrast-reduction",))
    with pytest.raises(RunFolderError, match="different weights of one network"):
        collect(found)


def test_more_images_than_there_are(folder: Path) -> None:
    found = context(folder, attacks=("shifts",), attack_samples=5000, attack_batch_size=200)
    assert [part.name for part in plan(found) if part.name.startswith("td-0")] == [
        "td-0/shifts-000000-000200",
        f"td-0/shifts-000200-{len(found.data.test):06d}",
    ]


def test_attacks_on_one_network_alone_are_not_compared(folder: Path) -> None:
    for network, names in (("bu", ("shifts", "deepfool")), ("td", ("shifts", "contrast-reduction"))):
        found = attack(folder, attack_arrangements=(network,), attacks=names)
    (rows,) = collect(found).values()
    answers = {row["attack"]: (row["bu"] == "not run", row["td"] == "not run") for row in rows}
    assert answers == {
        "shifts": (False, False),
        "deepfool": (False, True),
        "contrast-reduction": (True, False),
    }  # and no strongest attack: all that they share is one


def test_only_attacks_in_another_norm(folder: Path) -> None:
    assert plan_branches(context(folder, attacks=("autoattack-linf",))) == []


def test_the_whole_experiment_by_its_name(folder: Path, done: Path) -> None:
    """Both halves, one after the other; the check of more steps looks at the first 50 images."""
    found = context(folder, attacks=("ddn",), attack_samples=60, attack_batch_size=40)
    names = [part.name for part in plan(found) if part.name.startswith("bu-0")]
    assert names == [
        *("bu-0/ddn-000000-000040", "bu-0/ddn-000040-000060"),
        *("bu-0/more-steps-ddn-000000-000040", "bu-0/more-steps-ddn-000040-000050"),
    ]
    answer = evaluate("robustness", FEW, folder)
    assert contents(folder) == contents(done)
    (rows,) = answer["tables"].values()
    medians = table(folder, "robustness").set_index(["arrangement", "attack"]).median_l2
    for row in rows:
        expected = medians["td", row["attack"]]
        assert row["td"] == (f"{expected:.3f}" if np.isfinite(expected) else "none found for half")


# --- tables ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More attacks on more images."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("finished") / "run"))
    whole(folder, attacks=("shifts", "additive-uniform", "deepfool", "ddn", "boundary"), attack_samples=20,
          attack_batch_size=20)  # fmt: skip
    return folder


def test_rows_against_a_loop_over_distances(finished: Path) -> None:
    rows = table(finished, "robustness")
    distances, curves = table(finished, "distances"), table(finished, "curves")
    pooled = distances[(distances.distance > 0) & np.isfinite(distances.distance)]
    for row in rows.itertuples():
        own = distances[(distances.arrangement == row.arrangement) & (distances.attack == row.attack)].distance
        right = [d for d in own if d > 0]
        assert row.samples == len(own) == 20
        assert row.clean_accuracy == pytest.approx(len(right) / 20)
        assert row.failures == sum(d == np.inf for d in right)
        assert row.success_rate == pytest.approx(1 - row.failures / len(right), rel=1e-5)
        assert row.median_l2 == pytest.approx(np.median(right), rel=1e-5)
        assert row.limit == pytest.approx(np.quantile(pooled[pooled.attack == row.attack].distance, 0.95), rel=1e-5)
        assert row.auc == pytest.approx(sum(min(d, row.limit) for d in own) / 20 / row.limit, rel=1e-4)
        curve = curves[(curves.arrangement == row.arrangement) & (curves.attack == row.attack)]
        for point in curve.itertuples():
            if min(abs(d - point.l2) for d in own if d) > 1e-4:
                assert point.accuracy == pytest.approx(sum(d > point.l2 for d in own) / 20)
    assert (rows[rows.attack == "boundary"].converged == 0).all()
    assert (rows[rows.attack == "ddn"].converged == 1).all()


def test_the_strongest_attack_is_the_minimum_image_by_image(finished: Path) -> None:
    wide = table(finished, "distances").pivot(index=["arrangement", "image"], columns="attack", values="distance")
    white, black = ["deepfool", "ddn"], ["shifts", "additive-uniform", "boundary"]
    for name, attacks in (("", white + black), ("-white-box", white), ("-black-box", black)):
        np.testing.assert_array_equal(wide[f"strongest{name}"], wide[attacks].min(axis=1))
    rows = table(finished, "robustness").set_index(["arrangement", "attack"])
    for network in ("bu", "td"):
        total = sum(rows.loc[(network, name), "queries"] for name in white + black)
        assert rows.loc[(network, "strongest"), "queries"] == pytest.approx(total, rel=1e-4)


def test_masking(finished: Path) -> None:
    rows = table(finished, "masking").set_index(["arrangement", "check"])
    wide = table(finished, "distances").pivot(index=["arrangement", "image"], columns="attack", values="distance")
    assert {check for _, check in rows.index} == {"more-steps:ddn", "black-box", "unbounded"}
    for network in ("bu", "td"):
        own = wide.loc[network]
        own = own[own.ddn > 0]
        behind = own["strongest-white-box"] / own["strongest-black-box"] - 1
        row = rows.loc[(network, "black-box")]
        assert row.images == len(own)
        assert row.violations == (behind > 0.05).sum()
        assert row.largest == pytest.approx(behind.max(), rel=1e-3)
        assert row.holds == (row.violations == 0)
        row = rows.loc[(network, "unbounded")]
        assert row.violations == np.isinf(own["strongest-white-box"]).sum()
        row = rows.loc[(network, "more-steps:ddn")]
        more = load(finished / "parts" / "robustness" / f"{network}-0" / "more-steps-ddn-000000-000020.npz").arrays
        distance = more["distance"][more["clean"]]
        assert row.images == len(distance)
        assert row.median_change == pytest.approx(np.median(distance) / own.ddn.median() - 1, abs=1e-4)
        settings = load(finished / "parts" / "robustness" / f"{network}-0" / "ddn-000000-000020.npz").mark
        assert (
            settings["attack"]["settings"]["steps"] * 2 == find_attack("ddn").longer(2).settings("quick")["steps"]
        )


def test_branches_against_a_loop(finished: Path) -> None:
    rows = table(finished, "branches")
    found = context(finished)
    _, images, labels = found.sample(20)
    classifier = found.classifier("td", 0)
    assert set(rows.arrangement) == {"td"}
    for name in ("ddn", "shifts"):
        part = load(finished / "parts" / "robustness" / "td-0" / f"{name}-000000-000020.npz").arrays
        fooled = torch.as_tensor((part["distance"] > 0) & np.isfinite(part["distance"]))
        perturbed = torch.as_tensor(part["images"])
        own = rows[rows.attack == name].set_index(["inputs", "scale"])
        assert len(own) == 4 * 8
        assert (own.samples == int(fooled.sum())).all()
        assert (own.failures == int((part["clean"] & np.isinf(part["distance"])).sum())).all()
        assert (own.loc["none"].accuracy == 1).all()
        assert own.loc[("all", 1.0)].accuracy == 0
        for scale in (1.5, 3.0):
            far = (images + scale * (perturbed - images)).clamp(0, 1)
            with torch.no_grad():
                logits = classifier.forward_branches({1: images, 2: far, 4: far})
            right = (logits.argmax(1) == labels)[fooled].double().mean()
            assert own.loc[("medium+lowest", scale)].accuracy == pytest.approx(float(right), rel=1e-5)


def checkpoint_of(folder: Path, network: nn.Module, name: str) -> nn.Module:
    """The weights of a finished training in a network that was made without the suite."""
    state = torch.load(folder / "runs" / name / "checkpoint.pt", weights_only=True)["model"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    return network.eval()


@pytest.fixture
def networks(finished: Path) -> list[tuple[str, nn.Module]]:
    bottom_up = LeNetFC(10)
    top_down = bu2td.convert(LeNetFC(10), example_inputs=torch.zeros(1, *SIZE))
    return [
        ("bu-0", checkpoint_of(finished, bottom_up, "bu-0")),
        ("td-0", checkpoint_of(finished, top_down, "td-0")),
    ]


def test_foolbox_on_the_saved_networks_agrees(finished: Path, networks: list[tuple[str, nn.Module]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    _, images, labels = context(finished).sample(20)
    settings = find_attack("ddn").settings("quick")
    attacks = {
        "deepfool": foolbox.attacks.L2DeepFoolAttack(steps=20, candidates=4, overshoot=0.02),
        "ddn": foolbox.attacks.DDNAttack(**settings),
    }
    for folder, network in networks:
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        right = (network(images).argmax(1) == labels).numpy()
        for name, plain in attacks.items():
            found, _, success = plain(model, images, labels, epsilons=None)
            theirs = np.where(success.numpy(), (found - images).flatten(1).norm(dim=1).detach().numpy(), np.inf)
            ours = load(finished / "parts" / "robustness" / folder / f"{name}-000000-000020.npz").arrays
            np.testing.assert_array_equal(ours["clean"], right)
            assert right.sum() > 5
            both = right & np.isfinite(theirs) & np.isfinite(ours["distance"])
            assert both.sum() >= 0.9 * right.sum()
            np.testing.assert_allclose(np.median(ours["distance"][both]), np.median(theirs[both]), rtol=0.02)
            assert np.mean(np.abs(ours["distance"][both] / theirs[both] - 1) < 0.01) > 0.8
