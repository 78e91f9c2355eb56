"""`kimera-sql backup` and `kimera-sql restore`: dumps, and what becomes of backups."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from .. import embedded
from ..connect import open_pool
from ..errors import BackupError
from ..ops.backup import dumps as backup
from ..ops.backup import restore
from ..settings import Settings
from ..sql import Connection, is_postgres
from ..strategies import parse
from . import basebackup
from .arguments import add_folder
from .connection import autocommit
from .output import add_json, print_json, print_records


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the commands of `kimera-sql backup`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    dump = commands.add_parser("dump", help="dump the database and the server's roles, and prove the dump")
    dump.set_defaults(run=_dump)

    listing = commands.add_parser("list", help="list dumps and base backups")
    listing.set_defaults(run=_list)

    verify = commands.add_parser("verify", help="read backups to their end and compare them with their manifests")
    verify.add_argument("backups", metavar="BACKUP", type=Path, nargs="*", help="a file or folder (all in DIR)")
    verify.set_defaults(run=_verify)

    prune = commands.add_parser("prune", help="remove old backups, once a newer one has proved good")
    prune.add_argument("--keep-days", metavar="N", type=int, default=30, help="(%(default)s)")
    prune.add_argument("--keep", metavar="N", type=int, default=3, help="good dumps kept at any age (%(default)s)")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.set_defaults(run=_prune)

    schedule = commands.add_parser("schedule", help="print a systemd timer and a cron line for daily backups")
    schedule.set_defaults(run=_schedule)

    drill = commands.add_parser("drill", help="restore the newest dump on a throwaway server, and compare it")
    drill.add_argument("dump", metavar="DUMP", type=Path, nargs="?", help="another dump than the newest in DIR")
    drill.add_argument(
        "--on-server", action="store_true", help="in a database of its own on the configured server instead"
    )
    drill.set_defaults(run=_drill)

    basebackup.add(commands)

    for one in (dump, listing, prune, schedule):
        add_folder(one)
    for one in (verify, drill):
        add_folder(one, required=False)
    for one in (dump, listing, verify, prune, drill):
        add_json(one)


def add_restore(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the arguments of `kimera-sql restore`."""
    parser.add_argument("dump", metavar="DUMP", type=Path)
    parser.add_argument("--into", metavar="NAME", required=True, help="the database to make")
    parser.add_argument("--replace", action="store_true", help="let it take the place of a database that is there")
    parser.add_argument("--drop-old", action="store_true", help="do not keep the database that it replaces")
    parser.add_argument(
        "--maintenance-db", metavar="NAME", default="postgres", help="the database to connect to (%(default)s)"
    )
    add_json(parser)
    parser.set_defaults(run=_restore)


def _dump(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        made = backup.dump(conn, arguments.folder)
    if arguments.json:
        print_json(asdict(made))
    else:
        print(
            f"{made.path}: {made.size / 2**20:,.1f} MB, {len(made.contents.tables)} tables, {made.contents.rows:,} "
            "rows, verified"
        )


def _list(arguments: argparse.Namespace) -> None:
    print_records(
        backup.existing(arguments.folder), as_json=arguments.json, empty=f"there are no backups in {arguments.folder}"
    )


def _verify(arguments: argparse.Namespace) -> int:
    paths = arguments.backups or [one.path for one in backup.existing(_folder(arguments))]
    if not paths:
        raise BackupError(f"there are no backups in {arguments.folder}")
    faults: dict[str, str | None] = {}
    for path in paths:
        try:
            backup.verify(path)
            faults[str(path)] = None
        except BackupError as error:
            faults[str(path)] = str(error)
    if arguments.json:
        print_json([{"backup": path, "fault": fault} for path, fault in faults.items()])
    else:
        for path, fault in faults.items():
            print(f"{path}: good" if fault is None else f"DAMAGED  {fault}")
    return int(any(faults.values()))


def _prune(arguments: argparse.Namespace) -> None:
    removed = backup.prune(
        arguments.folder, keep_days=arguments.keep_days, keep=arguments.keep, dry_run=arguments.dry_run
    )
    print_records(removed, as_json=arguments.json, empty="there is nothing to remove")
    if removed and not arguments.json:
        print("nothing was removed yet (--dry-run)" if arguments.dry_run else "removed")


def _schedule(arguments: argparse.Namespace) -> None:
    print(backup.schedule(arguments.folder, command=shutil.which("kimera-sql") or "kimera-sql"), end="")


def _drill(arguments: argparse.Namespace) -> int:
    dump = arguments.dump or backup.newest_dump(_folder(arguments))
    if arguments.on_server:
        with autocommit(arguments) as conn:
            done = restore.drill(dump, conn=conn)
    else:
        done = restore.drill(dump)
    if arguments.json:
        print_json(asdict(done))
    else:
        print(
            f"{done.dump} on PostgreSQL {done.server_version}: {done.tables} tables, {done.rows:,} rows, "
            f"{done.searches} searches, {len(done.differences)} differences"
        )
        print("".join(f"  {difference}\n" for difference in done.differences), end="")
    return int(bool(done.differences))


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.folder is None:
        raise BackupError("name a backup, or the folder of backups with --dir")
    folder: Path = arguments.folder
    return folder


def _restore(arguments: argparse.Namespace) -> None:
    with _maintenance(arguments) as conn:
        done = restore.restore(
            conn, arguments.dump, into=arguments.into, replace=arguments.replace, drop_old=arguments.drop_old
        )
    if arguments.json:
        print_json(asdict(done))
    else:
        proof = "as they were dumped" if done.compared else "with no manifest to compare with"
        print(f"{done.database}: {done.tables} tables, {done.rows:,} rows, {proof}")
        if done.kept is not None:
            print(f"the database that it replaced is {done.kept}")


@contextmanager
def _maintenance(arguments: argparse.Namespace) -> Iterator[Connection]:
    """Open an autocommit connection to the configured server's maintenance database."""
    name = arguments.maintenance_db
    settings = replace(Settings.from_env(), pool_size=1, pool_overflow=0, sqlite_fallback="never")
    if arguments.embedded is not None:
        with (
            embedded.server(arguments.embedded) as conninfo,
            # The role kimera of an embedded server makes no databases.
            psycopg.connect(make_conninfo(conninfo, dbname=name, user="postgres"), autocommit=True) as conn,
        ):
            yield conn
        return
    if settings.credentials is not None:
        settings = replace(settings, credentials={**settings.credentials, "dbname": name})
    if settings.database_url is not None:
        parameters = {**parse(settings.database_url, source="DATABASE_URL"), "dbname": name}
        settings = replace(settings, database_url=make_conninfo("", **parameters))
    with open_pool(settings=settings) as pool, pool.connection() as conn:
        if is_postgres(conn):
            conn.autocommit = True
        yield conn
