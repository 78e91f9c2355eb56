"""Long work of the server, with a look at how far it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Final, TypeVar

from ..progress import Bar
from ..search.indexes import Building
from ..sql import Connection, is_postgres
from .connection import pool

T = TypeVar("T")

_POLL: Final = 0.2
"""Seconds between two looks at the work."""


@contextmanager
def watched(
    arguments: argparse.Namespace, work: Callable[[Connection], T], look: Callable[[Connection], Iterable[Building]]
) -> Iterator[tuple[Connection, T]]:
    """Run *work* on a connection of its own and draw what *look* sees of it on another; Ctrl-C cancels it."""
    with (
        pool(arguments, pool_size=2) as opened,
        opened.connection() as conn,
        opened.connection() as watching,
        ThreadPoolExecutor(1) as executor,
    ):
        if is_postgres(conn) and is_postgres(watching):
            conn.autocommit = watching.autocommit = True
        done = executor.submit(work, conn)
        try:
            with Bar() as bar:
                while not wait([done], timeout=_POLL).done:
                    for one in look(watching):
                        bar.draw(f"{one.table}: {one.phase}", one.done, one.total)
        except BaseException:
            if is_postgres(conn):
                conn.cancel_safe()
            wait([done])
            raise
        yield conn, done.result()
