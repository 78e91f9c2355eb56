"""`kimera-sql copy`."""

from __future__ import annotations

import argparse

from .. import transfer
from ..errors import SettingsError
from ..migrations import migrate
from ..settings import Settings
from ..sql import Connection
from ..sqlite import SqlitePool
from .connection import server


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--from", dest="source", choices=("sqlite", "postgres"), required=True)
    parser.add_argument("--to", dest="target", choices=("sqlite", "postgres"), required=True)
    parser.add_argument("--skip-existing", action="store_true", help="leave out rows whose ids the target has")
    parser.add_argument(
        "--leave-out",
        metavar="TABLE",
        action="append",
        default=[],
        help="a table of your own that is not to be copied (can be given again)",
    )
    parser.set_defaults(run=_copy)


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
