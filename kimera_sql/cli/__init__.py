"""The command `kimera-sql`."""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import sys
import warnings
from collections.abc import Container, Sequence
from types import FrameType

import psycopg
from psycopg_pool import PoolTimeout

from .. import demo, embedded, transfer
from ..connect import open_pool
from ..errors import InvalidValue, KimeraError, SettingsError
from ..migrations import differences, migrate, pending
from ..settings import Settings
from ..sql import Connection
from ..sqlite import SqlitePool
from . import adopt, backup, index, maintain, monitor, recover, restore, verify
from .arguments import in_options
from .connection import add_place, pool, server


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after an error, or 130 when it was interrupted; a wrong usage exits with 2.

    A command that finds faults, as verify and doctor do, returns 1 for them.
    """
    signal.signal(signal.SIGTERM, _terminate)
    warnings.formatwarning = lambda message, *_, **__: f"kimera-sql: {message}\n"
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        code: int = arguments.run(arguments) or 0
    except BrokenPipeError:
        # Whoever read the output has gone. Without this Python would say so once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KimeraError, psycopg.Error, sqlite3.Error, PoolTimeout) as error:
        said = in_options(str(error)) if isinstance(error, InvalidValue) else str(error)
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"kimera-sql: {said}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kimera-sql: interrupted", file=sys.stderr)
        return 130
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return a command line as its options and the function that runs it. A wrong usage exits with 2."""
    parser, commands = _parser()
    return parser.parse_args(_name_folder(list(argv), commands))


def _terminate(number: int, frame: FrameType | None) -> None:
    # As an exception it stops an embedded server on its way out.
    raise SystemExit(128 + number)


def _parser() -> tuple[argparse.ArgumentParser, Container[str]]:
    """Return the parser, and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="kimera-sql",
        description="The database of Kimera SWM. It is found by --dsn or --embedded, else by KIMERA_DB_HOST, _PORT, "
        "_NAME, _USER and _PASSWORD, else by DATABASE_URL, else by libpq's variables (PGHOST ...). With none of these, "
        "init and maintain prune-metrics use an SQLite file, and the others refuse.",
    )
    add_place(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="create the schema, or bring it up to date")
    init.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 where the tables are not as init makes them"
    )
    init.set_defaults(run=_init)

    adopt.add(commands.add_parser("adopt", help="take over tables of these names that something else made"))

    index.add(commands.add_parser("index", help="vector indexes and their recall"))

    backup.add(commands.add_parser("backup", help="dumps, base backups and WAL, and proof that they are good"))
    restore.add(commands.add_parser("restore", help="restore a dump into a database that is checked first"))
    recover.add(commands.add_parser("recover", help="make a new server that is as this one was at a moment"))

    monitor.add_monitor(commands.add_parser("monitor", help="what goes on in the server, and how it is doing"))
    monitor.add_doctor(commands.add_parser("doctor", help="what is wrong, and what to do; exits with 1 for errors"))

    verify.add(commands)

    maintain.add(commands.add_parser("maintain", help="VACUUM, ANALYZE, and vector indexes built anew"))
    maintain.add_config(commands.add_parser("config", help="the server's settings for its memory"))
    maintain.add_roles(commands.add_parser("roles", help="make roles with least privilege; takes a superuser"))

    copy = commands.add_parser("copy", help="copy everything from one database into another")
    copy.add_argument("--from", dest="source", choices=("sqlite", "postgres"), required=True)
    copy.add_argument("--to", dest="target", choices=("sqlite", "postgres"), required=True)
    copy.add_argument("--skip-existing", action="store_true", help="leave out rows whose ids the target has")
    copy.add_argument(
        "--leave-out",
        metavar="TABLE",
        action="append",
        default=[],
        help="a table of your own that is not to be copied (can be given again)",
    )
    copy.set_defaults(run=_copy)

    show = commands.add_parser(
        "demo", help="embed, store and search Python's docstrings, on an embedded server that is thrown away"
    )
    show.add_argument(
        "--query", metavar="TEXT", action="append", default=[], help="search for TEXT (can be given again)"
    )
    show.set_defaults(run=_demo)
    return parser, commands.choices


def _name_folder(argv: list[str], commands: Container[str]) -> list[str]:
    """Write out the folder of a lone --embedded, which argparse would take from the command that follows."""
    if "--embedded" in argv:
        at = argv.index("--embedded") + 1
        if at == len(argv) or argv[at] in commands or argv[at].startswith("-"):
            argv.insert(at, str(embedded.default_folder()))
    return argv


def _init(arguments: argparse.Namespace) -> int:
    with pool(arguments) as opened, opened.connection() as conn:
        if arguments.check:
            lacking = [f"not applied: {name}" for name in pending(conn)] or [*map(str, differences(conn))]
            print("\n".join(lacking) or "the schema is as it should be")
            return 1 if lacking else 0
        applied = migrate(conn)
    print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")
    return 0


def _copy(arguments: argparse.Namespace) -> None:
    if arguments.source == arguments.target:
        raise SettingsError(f"--from and --to are both {arguments.source}")
    path = Settings.from_env().sqlite_path
    if arguments.source == "sqlite" and not path.exists():
        raise SettingsError(f"there is no SQLite file {path}; KIMERA_SQLITE_PATH names another")
    with (
        server(arguments) as postgres,
        SqlitePool(path) as sqlite,
        postgres.connection() as conn,
        sqlite.connection() as file,
    ):
        source: Connection = file if arguments.source == "sqlite" else conn
        target: Connection = conn if arguments.source == "sqlite" else file
        migrate(target)
        copied = transfer.copy(source, target, skip_existing=arguments.skip_existing, leave_out=arguments.leave_out)
    for table in copied:
        print(f"{table.table:22} {table.rows:>10,} copied {table.skipped:>10,} skipped  {table.checksum}")


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.dsn is not None:
        raise SettingsError(
            "demo fills a database of its own; leave --dsn out, or give --embedded to keep what it stores"
        )
    if arguments.embedded is not None:
        with pool(arguments) as opened, opened.connection() as conn:
            demo.run(conn, arguments.query)
    else:
        with embedded.server() as conninfo, open_pool(conninfo) as opened, opened.connection() as conn:
            demo.run(conn, arguments.query)
