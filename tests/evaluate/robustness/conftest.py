"""A finished training of two small networks, which stages measure."""

import shutil
from pathlib import Path

import pytest

NET = """
from torch import nn

def unit(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU())

def net(num_classes=10, in_channels=1):
    head = nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes)
    return nn.Sequential(unit(in_channels, 8), nn.MaxPool2d(2), unit(8, 8), *head)
"""


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("foolbox", "lightning_fabric", "yaml", "sklearn"):
        pytest.importorskip(package)
    from bu2td.evaluate import Settings, evaluate

    place = tmp_path_factory.mktemp("trained")
    (place / "net.py").write_text(NET)
    settings = Settings(
        model=f"{place / 'net.py'}:net", data="digits", arrangements=("bu", "td"), repeats=2, epochs=2,
        input_size=(1, 16, 16), device="cpu", attacks=("fgsm", "contrast-reduction"), attack_samples=6,
        attack_repeats=1, attack_batch_size=4, attack_runs=1, frequency_samples=6, corruption_samples=10,
        measure_memory=False,
    )  # fmt: skip
    evaluate("train", settings, place / "run")
    return place / "run"


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A folder of its own with the trainings of bu and td, two of each, on digits of 16 x 16."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))
