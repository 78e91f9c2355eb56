"""The database that a command runs on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg

from .. import embedded
from ..connect import open_pool
from ..errors import SettingsError
from ..pools import Pool
from ..settings import Settings
from ..sqlite import SqlitePool


@contextmanager
def pool(arguments: argparse.Namespace) -> Iterator[Pool | SqlitePool]:
    """Open a pool of one connection to the database, which can be an SQLite file."""
    with _conninfo(arguments) as conninfo, open_pool(conninfo, settings=_settings(arguments)) as opened:
        yield opened


@contextmanager
def server(arguments: argparse.Namespace, *, size: int = 1) -> Iterator[Pool]:
    """Open a pool of *size* connections to the server. Raises SettingsError where none is configured."""
    settings = replace(_settings(arguments), pool_size=size, sqlite_fallback="never")
    with _conninfo(arguments) as conninfo:
        if conninfo is None:
            require_server(settings)
        with open_pool(conninfo, settings=settings) as opened:
            assert isinstance(opened, Pool)  # noqa: S101 - narrows the type: there is no SQLite to fall back on
            yield opened


@contextmanager
def autocommit(arguments: argparse.Namespace) -> Iterator[psycopg.Connection[Any]]:
    """Open an autocommit connection to the server. Raises SettingsError where none is configured."""
    with server(arguments) as opened, opened.connection() as conn:
        conn.autocommit = True
        yield conn


def require_server(settings: Settings) -> None:
    """Raise SettingsError where *settings* name no server, so that an SQLite file would serve."""
    if settings.credentials is None and settings.database_url is None and not settings.libpq:
        raise SettingsError(
            "this command needs a PostgreSQL server, and none is configured: set KIMERA_DB_HOST and its companions or "
            "DATABASE_URL, or give --dsn or --embedded before the command"
        )


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = Settings.from_env() if arguments.embedded is None else Settings()
    return replace(settings, pool_size=1, pool_overflow=0)


@contextmanager
def _conninfo(arguments: argparse.Namespace) -> Iterator[str | None]:
    """Give the conninfo that the options name, None where the environment says where the database is."""
    if arguments.embedded is None:
        yield arguments.dsn
    else:
        with embedded.server(arguments.embedded) as conninfo:
            yield conninfo
