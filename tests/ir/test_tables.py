"""Rows as a table of text."""

from bu2td.ir import format_table


def test_tables_of_rows_that_lack_a_column() -> None:
    text = format_table([{"a": 1, "b": 2.5}, {"a": 10}, {"c": "x", "a": 3}])
    assert text.splitlines() == [" a    b  c", " 1  2.5", "10", " 3       x"]
