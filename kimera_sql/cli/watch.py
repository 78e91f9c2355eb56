"""Long work of the server, with a look at how far it is."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from time import monotonic
from typing import Final, TypeVar

from ..progress import Bar
from ..search.indexes import Building
from ..sql import Connection
from .connection import server

T = TypeVar("T")

_POLL: Final = 0.2
"""Seconds between two looks at the work."""

_PATIENCE: Final = 5.0
"""Seconds that the work waits for a process before it is said."""


class _Waits:
    """Says once of each process that the work waits for it, after a while: such a wait has no limit."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def note(self, seen: Building) -> None:
        """Take note of the process that the work is seen to wait for."""
        if seen.waits_for is None:
            return
        since = self._since.setdefault(seen.waits_for, monotonic())
        if monotonic() - since > _PATIENCE:
            self._since[seen.waits_for] = math.inf
            print(
                f"kimera-sql: {seen.table}: {seen.phase}: the transaction of process {seen.waits_for} must end first",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def watched(
    arguments: argparse.Namespace, work: Callable[[Connection], T], look: Callable[[Connection], Iterable[Building]]
) -> Iterator[tuple[Connection, T]]:
    """Run *work* on a connection of its own and draw what *look* sees of it on another; Ctrl-C cancels it."""
    with (
        server(arguments, size=2) as opened,
        opened.connection() as conn,
        opened.connection() as watching,
        ThreadPoolExecutor(1) as executor,
    ):
        conn.autocommit = watching.autocommit = True
        done = executor.submit(work, conn)
        waits = _Waits()
        try:
            with Bar() as bar:
                while not wait([done], timeout=_POLL).done:
                    for one in look(watching):
                        bar.draw(f"{one.table}: {one.phase}", one.done, one.total)
                        waits.note(one)
        except BaseException:
            conn.cancel_safe()
            wait([done])
            raise
        yield conn, done.result()
