"""A report as a list of blocks, and how blocks become HTML and Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

__all__ = ["Block", "Cell", "Heading", "Missing", "Picture", "Table", "Text", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Cell:
    """A cell with a tone of its own: better, worse, unclear or undecided."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading, level 2 or 3 (1 is the title)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A table: the first columns are words (left), the others numbers (right)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure: its file in the folder ``figures``, and one sentence."""

    path: Path
    caption: str
    width: int


@dataclass(frozen=True)
class Missing:
    """What is not there, and the command that makes it."""

    text: str
    command: str = ""


Block: TypeAlias = Heading | Text | Table | Picture | Missing


#: A word of more characters may be broken into lines.
LONG = 26

# --- HTML ---------------------------------------------------------------------------------------------


def to_html(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """One file with everything in it: no script, no link to anything outside."""
    body = "\n".join(_html(block) for block in blocks)
    heading = f"<h1>{_e(title)}</h1>\n<p class='subtitle'>{_e(subtitle)}</p>"
    # no str.format: the style is full of braces, and the text may hold whatever it likes
    return "".join([_HEAD.replace("TITLE", _e(title), 1), heading, "\n", body, "\n</body>\n</html>\n"])


def _e(text: str) -> str:
    printable = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(printable)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_e(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = ' class="small"' if block.small else ""
        return f"<p{kind}>{_e(block.text)}</p>"
    if isinstance(block, Missing):
        command = f" <code>{_e(block.command)}</code>" if block.command else ""
        return f'<p class="missing">{_e(block.text)}{command}</p>'
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        return (
            f'<figure><img width="{block.width}" src="data:image/png;base64,{data}" alt="{_e(block.caption)}">'
            f"<figcaption>{_e(block.caption)}</figcaption></figure>"
        )
    return _html_table(block)


def _html_table(table: Table) -> str:
    def cell(tag: str, index: int, value: str | Cell) -> str:
        text, tone = (value.text, value.tone) if isinstance(value, Cell) else (value, "")
        left = index < table.words or any(isinstance(row[index], Cell) for row in table.rows)
        long = "long" if len(text) > LONG and index < table.words else ""
        kinds = " ".join(kind for kind in ("word" if left else "", long, tone) if kind)
        return f"<{tag}{f' class={kinds!r}' if kinds else ''}>{_e(text)}</{tag}>"

    head = "".join(cell("th", i, name) for i, name in enumerate(table.columns))
    body = "".join(f"<tr>{''.join(cell('td', i, v) for i, v in enumerate(row))}</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table><caption>{_e(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --ink: #222; --soft: #5b5b5b; --page: #fff; --line: #e4e4e4; --strong: #b8b8b8;
        --better: #00614a; --better-page: #e0f3ec; --worse: #9c3a00; --worse-page: #fdeadf; --note: #f5f3ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a9a9a9; --page: #191a1c; --line: #34363a; --strong: #5a5d63;
          --better: #6fd9b6; --better-page: #12352b; --worse: #ffab7a; --worse-page: #402110; --note: #2a2820; }
}
body { max-width: 64rem; margin: 2.5rem auto; padding: 0 1.2rem; color: var(--ink); background: var(--page);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-bottom: .25rem; border-bottom: 1px solid var(--strong); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
h1, h2, h3, p, figcaption, caption { overflow-wrap: anywhere; }
p { max-width: 48rem; }
.subtitle { color: var(--soft); margin: 0 0 1.5rem; }
.small, figcaption, caption { color: var(--soft); font-size: .85rem; }
.missing { background: var(--note); border-left: 3px solid var(--strong); padding: .5rem .8rem; font-size: .9rem; }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0 1.6rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; caption-side: top; padding-bottom: .45rem; max-width: 48rem; }
th, td { padding: .28rem .55rem; text-align: right; vertical-align: top; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--strong); vertical-align: bottom; font-weight: 600; white-space: normal; }
.word { text-align: left; }
.long { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
.better { color: var(--better); background: var(--better-page); text-align: left; }
.worse { color: var(--worse); background: var(--worse-page); text-align: left; }
.unclear, .undecided { color: var(--soft); text-align: left; }
figure { margin: 1.2rem 0 2rem; }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 3px; }
figcaption { margin-top: .5rem; max-width: 48rem; }
@media print {
  :root { --ink: #000; --soft: #444; --page: #fff; --line: #ddd; --strong: #999; --better: #00614a;
          --better-page: #e0f3ec; --worse: #9c3a00; --worse-page: #fdeadf; --note: #f5f3ea; }
  body { margin: 0; max-width: none; font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .wide { overflow: visible; }
}
</style>
</head>
<body>
"""


# --- Markdown -----------------------------------------------------------------------------------------


def to_markdown(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are links into the folder ``figures``."""
    parts = [f"# {_m(title)}", _m(subtitle), *(_markdown(block) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def _m(text: str) -> str:
    """Plain text: nothing in it is Markdown or HTML."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", flat)


def _code(text: str) -> str:
    """Inline code, whatever backticks it holds."""
    flat = " ".join(text.split())
    runs = re.findall(r"`+", flat)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    space = " " if runs else ""
    return f"{fence}{space}{flat}{space}{fence}"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_m(block.text)}"
    if isinstance(block, Text):
        return _m(block.text)
    if isinstance(block, Missing):
        return f"> {_m(block.text)}{f' {_code(block.command)}' if block.command else ''}"
    if isinstance(block, Picture):
        return f"![{_m(block.caption)}](figures/{block.path.name})\n\n*{_m(block.caption)}*"
    texts = [[_m(v.text if isinstance(v, Cell) else v) for v in row] for row in block.rows]
    lines = [[_m(name) for name in block.columns], *texts]
    rule = [":--" if i < block.words else "--:" for i in range(len(block.columns))]
    rows = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
    return f"{_m(block.caption)}\n\n" + "\n".join(rows)
