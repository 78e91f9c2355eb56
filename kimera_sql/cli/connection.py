"""The database that a command runs on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .. import embedded
from ..connect import Pool, open_pool
from ..settings import Settings
from ..sql import Connection, is_postgres
from ..sqlite import SqlitePool


@contextmanager
def pool(arguments: argparse.Namespace, **settings: Any) -> Iterator[Pool | SqlitePool]:
    """Open a pool of one connection, or of what *settings* say, to the database that the command is to run on."""
    settings = {"pool_size": 1, "pool_overflow": 0, **settings}
    if arguments.embedded is None:
        with open_pool(settings=replace(Settings.from_env(), **settings)) as opened:
            yield opened
    else:
        with (
            embedded.server(arguments.embedded) as conninfo,
            open_pool(conninfo, settings=Settings(**settings)) as opened,
        ):
            yield opened


@contextmanager
def autocommit(arguments: argparse.Namespace) -> Iterator[Connection]:
    """Open an autocommit connection to that database."""
    with pool(arguments) as opened, opened.connection() as conn:
        if is_postgres(conn):
            conn.autocommit = True
        yield conn
