"""Settings: defaults, presets, files and flags; the paper's numbers; what is said of values that make no sense."""

from pathlib import Path
from typing import Any

import pytest

from bu2td.errors import FileError, OptionError
from bu2td.evaluate.settings import FIELDS, Settings, list_presets, read_settings, to_yaml

pytest.importorskip("yaml")


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.2\nweight-decay: 5e-4\nhflip: 0.5\n")
    settings = read_settings("quick", file, {"hflip": "0.25"})
    assert (settings.epochs, settings.lr, settings.weight_decay, settings.hflip) == (10, 0.2, 5e-4, 0.25)
    assert settings.momentum == Settings().momentum


# (epochs bottom-up / top-down, lr, weight decay), in the paper's text and the authors' scripts
PAPER = {
    "mnist-lenet_fc": (50, 30, 0.1, 0.1, 0),
    "mnist-nin_light": (50, 50, 0.1, 0.1, 0),
    "fashion-mnist-lenet_fc": (40, 40, 0.1, 0.1, 0),
    "fashion-mnist-nin_light": (50, 50, 0.1, 0.1, 0),
    "cifar10-resnet32": (100, 100, 0.1, 0.1, 5e-4),
    "cifar10-nin": (100, 100, 0.1, 0.1, 5e-4),
    "cifar10-augmented-resnet32": (200, 200, 0.1, 0.1, 1e-4),
    "cifar10-augmented-nin": (200, 200, 0.1, 0.1, 1e-4),
    "imagenette-resnet18": (50, 50, 0.1, 0.05, 1e-3),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_of_the_paper(name: str) -> None:
    settings = read_settings(name)
    turned = settings.for_arrangement("td")
    found = (settings.epochs, turned.epochs, settings.lr, turned.lr, settings.weight_decay)
    assert found == PAPER[name]
    assert (settings.momentum, settings.decay_milestones, settings.decay_rate) == (0.9, (0.5, 0.8), 0.1)
    assert (settings.repeats, settings.validation_share) == (4, 0.1)
    assert turned.batch_size == (64 if name.startswith("imagenette") else 128)
    assert settings.for_arrangement("bu") == settings
    assert settings.for_arrangement("rev") == turned == settings.for_arrangement("uni")
    assert (settings.normalise == "pixel-mean") == name.startswith(("cifar10", "imagenette"))


def test_every_preset_names_itself_after_its_data() -> None:
    for name in list_presets():
        settings = read_settings(name)
        assert name in ("quick", "full", "full-nin_light") or name.startswith(settings.data)


def test_a_preset_can_be_printed_and_read_again(tmp_path: Path) -> None:
    for name in list_presets():
        settings = read_settings(name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml(settings))
        assert read_settings(config=file) == settings


BAD: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.1}, "no setting 'learning_rate'"),
    ({"weight_decya": 0.1}, "Did you mean 'weight_decay'"),
    ({"lr": "fast"}, "lr = 'fast': expected a number"),
    ({"lr": 0}, "lr = 0.0: expected above 0"),
    ({"lr": float("nan")}, "expected a number"),
    ({"epochs": 1.5}, "epochs = 1.5: expected a whole number"),
    ({"epochs": 0}, "epochs = 0: expected at least 1"),
    ({"epochs": True}, "expected a whole number"),
    ({"amp": "yes"}, "amp = 'yes': expected true or false"),
    ({"model": 7}, "model = 7: expected a word"),
    ({"hflip": 2}, "between 0 and 1"),
    ({"validation_share": 1}, "both excluded"),
    ({"decay_milestones": [0.5, 30]}, "shares between 0 and 1"),
    ({"arrangements": ["bu", "dt"]}, "Did you mean 'td'"),
    ({"arrangements": ["bu", "bu"]}, "each once"),
    ({"arrangements": []}, "at least one"),
    ({"init": "he"}, "expected default, glorot_uniform, he_normal"),
    ({"normalise": "pixel_mean"}, "Did you mean 'pixel-mean'"),
    ({"input_size": [3, 32]}, "three whole numbers"),
    ({"top_down": {"model": "x"}}, "training settings only"),
    ({"top_down": {"lr": -1}}, "lr = -1.0: expected above 0"),
    ({"top_down": 3}, "expected a mapping"),
    ({"seed": -1}, "at least 0"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_values_that_make_no_sense(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_settings(flags=flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("lr: [1, 2", "line 1"), ("- a\n- b", "found list"), ("lr: 0.1\n  b: 2: 3\n", "not YAML")]
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(FileError, match=message):
        read_settings(config=file)


def test_missing_files_and_presets(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_settings(config=tmp_path / "nowhere.yaml")
    with pytest.raises(OptionError, match="Did you mean 'quick'"):
        read_settings("quik")
    (tmp_path / "empty.yaml").write_text("")
    assert read_settings(config=tmp_path / "empty.yaml") == Settings()


def test_identity_leaves_out_the_machine() -> None:
    assert Settings(device="cuda", workers=3, data_dir="/x").identity() == Settings().identity()
    assert Settings(lr=0.2).identity() != Settings().identity()
    assert Settings(attack_samples=5).identity("training") == Settings().identity("training")
    groups = {f.metadata["group"] for f in FIELDS.values()}
    assert groups == {"data", "training", "robustness", "corruptions", "frequency", "explain", "machine"}
