"""`kimera-sql restore`: a dump into a database."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from .. import embedded
from ..connect import open_pool
from ..ops import backup
from ..secrecy import reveal
from ..settings import Settings
from ..sql import Connection, is_postgres
from ..strategies import parse
from .connection import require_server
from .output import add_json, print_json


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the arguments of `kimera-sql restore`."""
    parser.add_argument("dump", metavar="DUMP", type=Path)
    parser.add_argument("--into", metavar="NAME", required=True, help="the database to make")
    parser.add_argument("--replace", action="store_true", help="let it take the place of a database that is there")
    parser.add_argument("--drop-old", action="store_true", help="do not keep the database that it replaces")
    parser.add_argument(
        "--disconnect", action="store_true", help="end the clients of the database that it replaces, once that is ready"
    )
    parser.add_argument(
        "--maintenance-db", metavar="NAME", default="postgres", help="the database to connect to (%(default)s)"
    )
    add_json(parser)
    parser.set_defaults(run=_restore)


def _restore(arguments: argparse.Namespace) -> None:
    with _maintenance(arguments) as conn:
        done = backup.restore_dump(
            conn,
            arguments.dump,
            into=arguments.into,
            replace=arguments.replace,
            drop_old=arguments.drop_old,
            disconnect=arguments.disconnect,
        )
    if arguments.json:
        print_json(asdict(done))
    else:
        proof = "as they were dumped" if done.compared else "with no manifest to compare with"
        print(f"{done.database}: {done.tables} tables, {done.rows:,} rows, {proof}")
        if done.kept is not None:
            print(f"the database that it replaced is {done.kept}")
        for sentence in done.remains:
            print(sentence)


@contextmanager
def _maintenance(arguments: argparse.Namespace) -> Iterator[Connection]:
    """Open an autocommit connection to the configured server's maintenance database."""
    name = arguments.maintenance_db
    settings = replace(Settings.from_env(), pool_size=1, pool_overflow=0, sqlite_fallback="never")
    if arguments.embedded is not None:
        with (
            embedded.server(arguments.embedded) as private,
            # The role kimera of an embedded server makes no databases.
            psycopg.connect(make_conninfo(private, dbname=name, user="postgres"), autocommit=True) as conn,
        ):
            yield conn
        return
    conninfo = None
    if arguments.dsn is not None:
        conninfo = make_conninfo("", **{**parse(arguments.dsn), "dbname": name})
    else:
        require_server(settings)
        settings = _with_database(settings, name)
    with open_pool(conninfo, settings=settings) as pool, pool.connection() as conn:
        if is_postgres(conn):
            conn.autocommit = True
        yield conn


def _with_database(settings: Settings, name: str) -> Settings:
    if settings.credentials is not None:
        settings = replace(settings, credentials={**settings.credentials, "dbname": name})
    if settings.database_url is not None:
        parameters = {**parse(reveal(settings.database_url), source="DATABASE_URL"), "dbname": name}
        settings = replace(settings, database_url=make_conninfo("", **parameters))
    elif settings.credentials is None and settings.libpq:
        settings = replace(settings, database_url=make_conninfo("", dbname=name))
    return settings
