"""Values: a tensor, or a tuple of them."""

from fractions import Fraction

import pytest

from bu2td.ir import Dim, flat, is_spatial, is_tensor, map_dims, reduction_of, tensors

MAP = (Dim("batch", 2), Dim("channel", 8), Dim("height", 4, Fraction(2)), Dim("width", 4, Fraction(2)))
COARSE = (Dim("batch", 2), Dim("channel", 8), Dim("height", 2, Fraction(4)), Dim("width", 2, Fraction(4)))
POOLED = (Dim("batch", 2), Dim("channel", 8))
NESTED = (MAP, (COARSE, POOLED), None)


def test_map_dims_keeps_the_structure() -> None:
    assert map_dims(len, NESTED) == (4, (4, 2), None)
    assert map_dims(len, ()) == 0  # a scalar tensor has no dimensions
    assert map_dims(len, None) is None


def test_map_dims_walks_values_of_the_same_structure() -> None:
    beside = ("map", ("coarse", "pooled"), None)
    assert map_dims(lambda dims, word: f"{word} {len(dims)}", NESTED, beside) == (
        "map 4",
        ("coarse 4", "pooled 2"),
        None,
    )
    with pytest.raises(ValueError, match="zip"):
        map_dims(lambda dims, word: word, (MAP, COARSE), ("one",))
    with pytest.raises(TypeError):
        map_dims(lambda dims, word: word, (MAP, COARSE), None)


def test_tensors_of_a_value() -> None:
    assert list(tensors(NESTED)) == [MAP, COARSE, POOLED]
    assert list(tensors(MAP)) == [MAP]
    assert list(tensors(())) == [()]
    assert list(tensors(None)) == []
    assert list(flat((POOLED, None, (POOLED,)))) == [*POOLED, *POOLED]


def test_what_a_value_is() -> None:
    assert is_tensor(MAP)
    assert not any(is_tensor(value) for value in (NESTED, (), None))
    assert is_spatial(NESTED)
    assert not is_spatial((POOLED, None))


def test_reduction_is_the_one_that_all_tensors_have() -> None:
    assert reduction_of(MAP) == 2
    assert reduction_of((MAP, MAP)) == 2
    assert reduction_of((MAP, COARSE)) is None
    assert reduction_of(POOLED) is None
    assert reduction_of(None) is None
    uneven = (*MAP[:3], Dim("width", 2, Fraction(4)))
    assert reduction_of(uneven) is None
