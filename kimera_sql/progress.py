"""A progress bar on the terminal; nothing at all where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

_WIDTH = 30
_INTERVAL = 0.1
"""Seconds between two drawings."""


class Bar:
    """Draws how far something is on standard error, and leaves nothing of it behind."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._write("\r\033[K")

    def draw(self, label: str, done: int, total: int) -> None:
        """Draw that *done* of *total* are done, unless it was drawn a moment ago."""
        if self._shown and monotonic() - self._drawn > _INTERVAL:
            self._drawn = monotonic()
            bar = "#" * (_WIDTH * min(done, total) // max(total, 1))
            self._write(f"\r\033[K{label} [{bar:{_WIDTH}}] {done:,}/{total:,}")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # the terminal was closed, and the work may go on without it
            self._shown = False


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield *items*, of which there are *total*, and draw how far they are."""
    with Bar() as bar:
        for number, item in enumerate(items, start=1):
            yield item
            bar.draw(label, number, total)
