"""What a forward's question is for, as its source says: a guard refuses, anything else chooses what is computed."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Sequence
from functools import cache
from typing import TypeGuard

#: Calls that say something and compute nothing.
_SPEECH = ("warn", "warning", "warn_once", "info", "debug", "print")


def passing_answer(file: str, line: int) -> bool | None:
    """The answer with which a guard passes, if the question that a line asks is one.

    A guard is an ``assert``, or an ``if`` one of whose branches raises, or only asserts or warns.

    Returns:
        True or False; None where the line is no guard, or its source is not known.
    """
    found = _question(file, line)
    if isinstance(found, ast.Assert):
        return not _negated(found.test)
    if isinstance(found, ast.If) and _refuses(found.body):
        return _negated(found.test)
    if isinstance(found, ast.If) and found.orelse and _refuses(found.orelse):
        return not _negated(found.test)
    return None


def _question(file: str, line: int) -> ast.AST | None:
    """The innermost statement or expression whose test is on a line."""
    tests = [node for node in _tests(file) if node.test.lineno <= line <= (node.test.end_lineno or 0)]
    return max(tests, key=lambda node: (node.test.lineno, node.test.col_offset), default=None)


@cache
def _tests(file: str) -> tuple[ast.Assert | ast.If | ast.IfExp | ast.While, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if _has_test(node))


def _has_test(node: ast.AST) -> TypeGuard[ast.Assert | ast.If | ast.IfExp | ast.While]:
    return isinstance(node, ast.Assert | ast.If | ast.IfExp | ast.While)


def _negated(test: ast.expr) -> bool:
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _refuses(body: Sequence[ast.stmt]) -> bool:
    if any(isinstance(statement, ast.Raise) for statement in body):
        return True
    return all(isinstance(statement, ast.Assert | ast.Pass) or _speaks(statement) for statement in body)


def _speaks(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _SPEECH
