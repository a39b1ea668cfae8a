"""Frozen data: plans do not change, whatever holds them."""

import copy
import dataclasses
import pickle
from enum import Enum
from fractions import Fraction
from typing import Any

import pytest
from nets import convert_baseline, make

import bu2td
from bu2td.ir import FrozenMap, LevelShape, Relaxation

LEAVES = (str, int, float, Fraction, Enum, type(None))


def thaw(value: Any, place: str = "") -> list[str]:
    """The places in a value that may change."""
    if isinstance(value, LEAVES):
        return []
    if isinstance(value, tuple | frozenset):
        return [found for i, part in enumerate(value) for found in thaw(part, f"{place}[{i}]")]
    if isinstance(value, FrozenMap):
        return [
            found for key, part in value.items() for found in [*thaw(key, place), *thaw(part, f"{place}[{key}]")]
        ]
    if dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        names = [f.name for f in dataclasses.fields(value)]
        return [found for name in names for found in thaw(getattr(value, name), f"{place}.{name}")]
    return [f"{place}: {type(value).__name__}"]


def test_frozen_maps_are_mappings_that_cannot_change() -> None:
    source = {"a": 1}
    frozen = FrozenMap(source)
    source["a"] = 2
    assert frozen == {"a": 1}
    with pytest.raises(TypeError):
        frozen["a"] = 3  # type: ignore[index]
    assert hash(frozen) == hash(FrozenMap([("a", 1)]))
    assert pickle.loads(pickle.dumps(frozen)) == frozen
    assert copy.deepcopy(frozen) is frozen


def test_plans_are_frozen_all_the_way_down() -> None:
    plan = bu2td.convert(make("resnet18"), device="meta").plan
    assert thaw(plan) == []
    assert thaw(dataclasses.replace(plan, notes=["mutable"])) == [".notes: list"]  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan


def test_words_print_as_themselves() -> None:
    assert f"{Relaxation.ADAPTERS}" == str(Relaxation.ADAPTERS) == "entry and exit adapter"
    assert ", ".join([Relaxation.REGROUP, LevelShape.BARE]) == "regroup, bare"
    rows = convert_baseline("lenet_fc", "td", device="meta").plan.rows()
    assert [type(row["shape"]) for row in rows] == [str, str, str]
    assert [row["shape"] for row in rows] == ["coarsest", "chain", "chain"]
