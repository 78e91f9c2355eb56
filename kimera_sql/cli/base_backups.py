"""`kimera-sql backup base|archive-command|receive-wal`: what point-in-time recovery needs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..ops import backup
from .arguments import add_folder
from .connection import autocommit
from .output import add_json, print_json, size_text

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Add these commands to those of `kimera-sql backup`."""
    base = commands.add_parser("base", help="make a base backup of the whole server, and verify it")
    add_folder(base)
    add_json(base)
    base.set_defaults(run=_base)

    command = commands.add_parser("archive-command", help="print the server's settings that archive its WAL")
    add_folder(command)
    command.add_argument(
        "--timeout", type=int, metavar="SECONDS", default=300, help="archive at least as often (%(default)s)"
    )
    add_json(command)
    command.set_defaults(run=_archive_command)

    receive = commands.add_parser("receive-wal", help="receive the server's WAL until stopped, instead of archiving it")
    add_folder(receive)
    receive.add_argument(
        "--slot", metavar="NAME", default="kimera_archive", help="replication slot, made if need be (%(default)s)"
    )
    receive.set_defaults(run=_receive_wal)


def _base(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        made = backup.make_base(conn, arguments.folder)
    if arguments.json:
        print_json(asdict(made))
    else:
        print(f"{made.path}: {size_text(made.size)} and the WAL up to {made.end_lsn}, verified")
    for lack in made.lacking:
        print(f"kimera-sql: {lack}", file=sys.stderr)


def _archive_command(arguments: argparse.Namespace) -> None:
    settings = backup.archive_settings(arguments.folder, timeout=arguments.timeout)
    if arguments.json:
        print_json(settings)
    else:
        wal = arguments.folder.absolute() / "wal"
        print(
            f"# For postgresql.conf; then restart the server. Where wal_level is logical, leave it so.\n"
            f"# {wal} must be there, and belong to the server's user with mode 0700,\n"
            f"# who must be able to read {backup.ARCHIVE_PROGRAM[-1]}.\n"
            f"{backup.postgresql_conf(settings)}",
            end="",
        )


def _receive_wal(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        backup.receive_wal(conn, arguments.folder, slot=arguments.slot)
