"""Random configurations of timm's generators: a seed is a network, and a run goes on where it stopped."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
pytest.importorskip("timm")
pytest.importorskip("tqdm")


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    import timm_configs

    yield timm_configs
    for name in ("timm_configs", "_timm_generators", "_results"):
        sys.modules.pop(name, None)


def generators() -> ModuleType:
    return sys.modules["_timm_generators"]


def test_a_seed_is_a_network(configs: ModuleType) -> None:
    told = [(family, configs.told(config)) for family, config in map(configs.drawn, range(200))]
    assert told == [(family, configs.told(config)) for family, config in map(configs.drawn, range(200))]
    assert {family for family, _ in told} == {generator.__name__ for generator in generators().GENERATORS}
    assert len({text for _, text in told}) > 190


def test_every_generator_has_networks_that_run(configs: ModuleType) -> None:
    """What timm itself cannot build or run is no network to count."""
    draw = generators().Draw(0)
    for generator in dict.fromkeys(generators().GENERATORS):
        for _ in range(8):
            with suppress(Exception):
                network = configs.built(generator(draw)).eval()
                if network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000):
                    break
        else:
            pytest.fail(f"no configuration of {generator.__name__} ran")


def test_a_run_goes_on(configs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def check(seed: int, real: int, timeout: float) -> list[dict[str, object]]:
        checked.append(seed)
        if seed == 5:
            return [{"seed": seed, "status": configs.INVALID, "cause": "ValueError"}]
        return [
            {"seed": seed, "arrangement": name, "status": "verified", "cause": "", "config": ""}
            for name in ("td", "rev")
        ]

    monkeypatch.setattr(configs, "check", check)
    words = ["--seed", "3", "--out", str(tmp_path / "rows")]
    configs.sweep(configs.arguments([*words, "--count", "2"]))
    assert checked == [3, 4]
    rows = configs.sweep(configs.arguments([*words, "--count", "4", "--resume"]))
    assert checked == [3, 4, 5, 6, 7]
    assert [row["seed"] for row in rows] == [3, 3, 4, 4, 5, 6, 6, 7, 7]
    document = json.loads((tmp_path / "rows.json").read_text())
    assert document["rows"] == rows
    assert document["about"]["summary"] == {"invalid": 1, "rev verified": 4, "td verified": 4}
    with pytest.raises(SystemExit, match="other settings"):
        configs.sweep(configs.arguments(["--seed", "4", "--out", str(tmp_path / "rows"), "--resume"]))


@pytest.mark.parametrize(("generator", "status"), [("vggs", "verified"), ("broken", "invalid")])
def test_rows(configs: ModuleType, monkeypatch: pytest.MonkeyPatch, generator: str, status: str) -> None:
    options = {"cfg": [8, "M", 8, "M"], "mlp_ratio": 0.01, "num_features": 8}
    if generator == "broken":
        options["cfg"] = ["A"]
    else:
        del options["num_features"]
    monkeypatch.setattr(configs, "drawn", lambda seed: (generator, (generators().vgg.VGG, options)))
    rows = configs.check(7, 0, 60)
    assert {(row["seed"], row["model"], row["family"], row["status"]) for row in rows} == {
        (7, "seed7", generator, status)
    }
    assert len(rows) == (3 if status == "verified" else 1)
    assert rows[0]["config"].startswith("VGG(cfg=")
