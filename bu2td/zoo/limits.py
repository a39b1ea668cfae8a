"""A limit of time for work that may never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Timeout", "limited"]

#: Seconds between two alarms, should the first one be swallowed by the work itself.
_AGAIN = 1.0


class Timeout(Exception):  # noqa: N818 - a cause in a table
    """Work took longer than it may."""


class _Alarm(BaseException):
    """What interrupts the work: no ``except Exception`` inside of it must end the alarm."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Interrupt the work inside after some seconds.

    There is no limit where none is given, outside of the main thread, and where the system has no alarms.

    Raises:
        Timeout: the work took longer.
    """
    if (
        seconds is None
        or threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "SIGALRM")
    ):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    except _Alarm:
        raise Timeout(f"it took longer than {seconds:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
