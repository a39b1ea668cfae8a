"""einops: its functions and layers work on proxies, and come out as the views that they are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bu2td.ops import register_following


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclass: type
    for subclass in cls.__subclasses__():
        yield from _with_subclasses(subclass)


@contextmanager
def _einops_follows(proxy: type) -> Iterator[None]:
    """Let einops take a proxy for a tensor of torch, as its own look-up of backends does."""
    backends = sys.modules.get("einops._backends")
    if backends is None:
        yield
        return
    known = backends._type2backend
    added = {cls: backends.TorchBackend() for cls in _with_subclasses(proxy) if cls not in known}
    known.update(added)
    try:
        yield
    finally:
        for cls in added:
            known.pop(cls, None)


register_following(_einops_follows)
