"""Families: the smallest model of every family of the zoo, in all three arrangements, on the meta device.

`pytest -m zoo` runs them all, `pytest -m zoo1` to `-m zoo4` a quarter each. Slow are those that test_real_models.py
converts too, and the four largest, whose peculiarities test_hard.py has in small or in one arrangement.
"""

import pytest
from families import SMALLEST
from nets import MODELS

from bu2td.options import ARRANGEMENTS
from bu2td.zoo.zoo import ZooModel, convert_model, list_zoo

pytest.importorskip("timm")
pytest.importorskip("torchvision")

pytestmark = pytest.mark.zoo

SHARDS = (pytest.mark.zoo1, pytest.mark.zoo2, pytest.mark.zoo3, pytest.mark.zoo4)

#: Families that cannot be turned upside down: their exception. Every other one is verified.
REFUSED = {
    "convmixer": "NoReductionError",  # one resolution throughout
    "hrnet": "TopologyError",  # several resolutions side by side, and no trunk
}

#: Families that other tests have, so that these are slow.
ELSEWHERE = {"csatv2", "mobilenetv5", "nasnet", "pnasnet"} | {f for f, word in SMALLEST.items() if word in MODELS}


def test_every_family_is_listed() -> None:
    zoo = list_zoo()
    assert set(SMALLEST) == {model.family for model in zoo}
    assert {ZooModel(word, family) for family, word in SMALLEST.items()} <= set(zoo)
    assert set(REFUSED) <= set(SMALLEST)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[SHARDS[i % len(SHARDS)], *([pytest.mark.slow] if name in ELSEWHERE else [])])
        for i, name in enumerate(SMALLEST)
    ],
)
def test_family(family: str) -> None:
    rows = convert_model(ZooModel(SMALLEST[family], family), ARRANGEMENTS, real=False)
    expected = ("refused", REFUSED[family]) if family in REFUSED else ("verified", "")
    found = {row.arrangement: (row.status, row.cause) for row in rows}
    assert found == dict.fromkeys(ARRANGEMENTS, expected), rows[0].message
    for row in rows:
        assert row.none + row.regroup + row.entry_adapter + row.exit_adapter + row.frozen == row.levels
        assert bool(row.levels) == (row.status == "verified") == (not row.message)
