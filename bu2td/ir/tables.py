"""Plain text tables."""

from __future__ import annotations

from typing import Any


def format_table(rows: list[dict[str, Any]]) -> str:
    """Lay dicts out as a plain text table; a column is empty where a row has no such key."""
    if not rows:
        return "(empty)"
    titles = list(dict.fromkeys(title for row in rows for title in row))
    cells = [[_cell(row[t]) if t in row else "" for t in titles] for row in rows]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(titles))]
    right = [all(isinstance(row[t], int | float) for row in rows if t in row) for t in titles]
    lines = []
    for line in [titles, *cells]:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else str(value)
