"""A report as a list of blocks, and the templates that make HTML and Markdown of them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from bu2td.packages import imported

__all__ = ["Block", "Cell", "Heading", "Missing", "Picture", "Table", "Text", "to_html", "to_markdown"]

#: A word of more characters may be broken into lines.
LONG = 26


@dataclass(frozen=True)
class Cell:
    """A cell with a tone of its own: better, worse, equal or undecided."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading, level 2 or 3 (1 is the title)."""

    text: str
    level: int = 2
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph; what leads it in, if anything, is set off."""

    text: str
    small: bool = False
    lead: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Table:
    """A table: the first columns are words (left), the others numbers (right)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    kind: ClassVar[str] = "table"

    @property
    def cells(self) -> list[list[Cell]]:
        """All cells, the plain ones without a tone."""
        return [[v if isinstance(v, Cell) else Cell(v) for v in row] for row in self.rows]

    def css(self, column: int, text: str, tone: str = "") -> str:
        """The classes of a cell."""
        left = column < self.words or any(isinstance(row[column], Cell) for row in self.rows)
        long = len(text) > LONG and left
        return " ".join(word for word, on in (("word", left), ("long", long), (tone, tone)) if on)


@dataclass(frozen=True)
class Picture:
    """A figure: its file in the folder ``figures``, one sentence, and its width in CSS pixels."""

    path: Path
    caption: str
    width: int
    kind: ClassVar[str] = "picture"

    @property
    def data(self) -> str:
        """The file, for a page that stands alone."""
        return base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Missing:
    """What is not there, and the command that makes it."""

    text: str
    command: str = ""
    kind: ClassVar[str] = "missing"


Block: TypeAlias = Heading | Text | Table | Picture | Missing


def to_html(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """One file with everything in it: no script, no link to anything outside."""
    return _render("report.html.j2", title, subtitle, blocks)


def to_markdown(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are links into the folder ``figures``."""
    return _render("report.md.j2", title, subtitle, blocks)


def _render(template: str, title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    found: str = _environment().get_template(template).render(title=title, subtitle=subtitle, blocks=blocks)
    return found


@cache
def _environment() -> Any:
    jinja2 = imported("jinja2", "'bu2td[evaluate]'", "a report is written with it:")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: _printable(value) if type(value) is str else value,  # not: what is HTML already
    )
    environment.filters |= {"plain": _plain, "code": _code}
    return environment


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Inline code of Markdown, whatever backticks it holds."""
    flat = " ".join(text.split())
    runs = re.findall(r"`+", flat)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    space = " " if runs else ""
    return f"{fence}{space}{flat}{space}{fence}"
