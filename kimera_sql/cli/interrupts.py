"""The signals that end a command: Ctrl-C, kill, a closed terminal."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from time import monotonic
from types import FrameType
from typing import Final

_REASONS: Final[Mapping[signal.Signals, str]] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
}

_GRACE: Final = 10.0
"""Seconds after a signal in which further ones are ignored, so that none cuts the cleaning up short."""

_AGAIN: Final = 0.01
"""Seconds after which a KeyboardInterrupt is raised again that came where nothing can come of it."""


class Interrupts:
    """Makes the signals that end a command a KeyboardInterrupt, for which psycopg cancels what the server runs.

    Those that are ignored stay so, as nohup wants it. Once the block has ended, each ends the process at once, if
    none has before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._ignored_until = 0.0

    def __enter__(self) -> Interrupts:
        self._handle(self._interrupt)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._lost
        return self

    def __exit__(self, *_: object) -> None:
        # A KeyboardInterrupt would be a traceback while Python ends. A command that was interrupted has its exit code,
        # which no further signal is to change: Python in its end lets each that is not ignored end it.
        self._handle(_leave if self.received is None else signal.SIG_IGN)
        sys.unraisablehook = self._unraisable

    @property
    def reason(self) -> str:
        """What has ended the command, in a word or two."""
        return _REASONS[self.received] if self.received is not None else ""

    def _handle(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in _REASONS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if monotonic() < self._ignored_until:
            return
        self.received = self.received or signal.Signals(number)
        self._ignored_until = monotonic() + _GRACE
        logging.disable()  # that connections are given up now is no news
        raise KeyboardInterrupt

    def _lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        # In a __del__ or a weak reference's callback, Python would only write that it was ignored.
        if self.received is None or not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._unraisable(unraisable)
            return
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
