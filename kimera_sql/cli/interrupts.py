"""The signals that end a command: Ctrl-C, kill, a closed terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from time import monotonic
from types import FrameType
from typing import Final

_TOLD: Final[Mapping[signal.Signals, str]] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal was closed",
}

_GRACE: Final = 10.0
"""Seconds after a signal in which further ones are overlooked, so that none cuts the cleaning up short."""


class Interrupts:
    """Makes the signals that end a command a KeyboardInterrupt, for which psycopg cancels what the server runs.

    Those that are ignored stay so, as nohup wants it. Once the block has ended, each has the system's own effect.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._overlooked_until = 0.0

    def __enter__(self) -> Interrupts:
        self._handle(self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        # Not Python's own, which would write a traceback while it ends.
        self._handle(signal.SIG_DFL)

    @property
    def told(self) -> str:
        """What has ended the command, in a word or two."""
        return _TOLD[self.received] if self.received is not None else ""

    def _handle(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in _TOLD:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if monotonic() < self._overlooked_until:
            return
        self.received = self.received or signal.Signals(number)
        self._overlooked_until = monotonic() + _GRACE
        raise KeyboardInterrupt
