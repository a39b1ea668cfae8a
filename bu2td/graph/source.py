"""Where the nodes of a captured graph come from."""

from __future__ import annotations

from functools import cache

from torch import fx


def source_line(node: fx.Node) -> str:
    """Where a node of a captured graph comes from, as ``file:line``."""
    return node.meta.get("line", "a torch.nn container")


@cache
def is_torch_source(file: str) -> bool:
    """Whether a source file is torch's."""
    return "/torch/" in file.replace("\\", "/")
