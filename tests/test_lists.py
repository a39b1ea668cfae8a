"""Lists on every command line: commas or spaces, the same value."""

import argparse
from collections.abc import Iterator

import pytest

from bu2td.arguments import ListAction, Parser, add_list, numbers, parse_arrangements, split_list
from bu2td.cli.program import build_parser

#: Items for lists that take numbers, or nothing else; (items, how many)
_NUMBERS = ("3", "16", "16")


def _parsers(
    parser: argparse.ArgumentParser, line: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """All parsers of the program with the words that lead to them."""
    if isinstance(parser, Parser):
        yield line, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, own in action.choices.items():
                yield from _parsers(own, (*line, name))


def _lists() -> list[tuple[tuple[str, ...], Parser, ListAction]]:
    return [
        (line, parser, action)
        for line, parser in _parsers(build_parser())
        for action in parser._actions
        if isinstance(action, ListAction)
    ]


def test_no_list_has_rules_of_its_own() -> None:
    for line, parser in _parsers(build_parser()):
        for action in parser._actions:
            if action.option_strings and not isinstance(action, ListAction):
                where = (*line, *action.option_strings)
                assert action.nargs not in ("+", "*"), where
                assert not isinstance(action, argparse._AppendAction | argparse._ExtendAction), where
                assert "," not in str(action.metavar), where  # a list that takes one word
    commands = {line[0] for line, _, _ in _lists()}
    assert commands >= {"erf", "evaluate", "zoo", "convert", "inspect", "draw"}
    assert len(_lists()) > 40


@pytest.mark.parametrize(
    ("line", "parser", "action"), [pytest.param(*case, id="-".join((*case[0], case[2].dest))) for case in _lists()]
)
def test_commas_and_spaces_are_the_same(line: tuple[str, ...], parser: Parser, action: ListAction) -> None:
    items = (
        _NUMBERS if action.numbers else ("a=1", "b=2", "c=3") if action.metavar == "KEY=VALUE" else ("a", "b", "c")
    )
    needed = [w for a in parser._actions if a.required and a.option_strings for w in (a.option_strings[-1], "file")]
    model = ["MODEL" for a in parser._actions if not a.option_strings and a.nargs is None]
    option = action.option_strings[-1]
    forms = (
        [option, ",".join(items)],
        [option, *items],
        [option, f"{items[0]},{items[1]}", items[2]],
        [option, f"{items[0]},", f"{items[1]}", ",", items[2]],
        [option, " ".join(items)],
        [f"{option}={','.join(items)}"],
    )
    values = []
    for form in forms:
        for words in ([*model, *needed, *form], [*needed, *form, *model], [*form, *needed, *model]):
            values.append(getattr(parser.parse_args(words), action.dest))
    assert values == [values[0]] * len(values)
    assert len(values[0]) == 3 or values[0] == ",".join(items)


def test_brackets_and_quotes_keep_an_item_together() -> None:
    assert split_list("a, b  c,,d") == ["a", "b", "c", "d"]
    assert split_list("reductions=[4, 2,1],stem=coarse") == ["reductions=[4, 2,1]", "stem=coarse"]
    assert split_list('name="a, b" c') == ['name="a, b"', "c"]
    assert split_list(" ,, ") == []


def test_a_list_given_again() -> None:
    parser = Parser()
    add_list(parser, "--last")
    add_list(parser, "--all", again=True)
    found = parser.parse_args(["--last", "a", "b", "--last", "c", "--all", "a,b", "--all", "c"])
    assert (found.last, found.all) == (["c"], ["a", "b", "c"])


def test_a_model_after_a_list_is_no_item() -> None:
    parser = Parser()
    parser.add_argument("model")
    add_list(parser, "--words")
    add_list(parser, "--sizes", made=numbers(3, "C,H,W"), numbers=True)
    assert parser.parse_args(["--sizes", "3", "32", "32", "resnet18"]).model == "resnet18"
    assert parser.parse_args(["--words", "a", "b", "resnet18"]).words == ["a", "b"]
    assert parser.parse_args(["resnet18", "--words", "a", "b"]).words == ["a", "b"]
    found = parser.parse_args(["--sizes", "3,8", "8", "--words", "a", "--", "resnet18"])
    assert (found.model, found.sizes, found.words) == ("resnet18", (3, 8, 8), ["a"])


def test_widths_among_arrangements() -> None:
    assert parse_arrangements(["td", "8", "16", "uni", "4", "8"]) == ["td", (8, 16), "uni", (4, 8)]
    assert parse_arrangements(["8", "16", "", "4", "8"]) == [(8, 16), (4, 8)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes"], "is not C,H,W"),
        (["--sizes", ","], "is not C,H,W"),
        (["--sizes", "3,0,1"], "is not C,H,W"),
        (["--words", ""], "expected at least one item"),
        (["--words"], "expected at least one item"),
    ],
)
def test_empty_lists_and_odd_numbers(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser()
    add_list(parser, "--words")
    add_list(parser, "--sizes", made=numbers(3, "C,H,W"), numbers=True)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
