"""`kimera-sql backup`: dumps, and what becomes of backups."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

from ..errors import BackupError
from ..ops import backup
from . import base_backups
from .arguments import add_folder
from .connection import autocommit
from .output import add_json, print_json, print_records, size_text


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

    schedule = commands.add_parser("schedule", help="print systemd units and cron lines for backups, drills and upkeep")
    schedule.add_argument(
        "--receive-wal", action="store_true", help="with a receiver of WAL, where the server does not archive it"
    )
    schedule.add_argument("--os-user", metavar="USER", help="whom it all runs as (DIR's owner, or postgres)")
    schedule.set_defaults(run=_schedule)

    drill = commands.add_parser("drill", help="restore the newest dump on a throwaway server, and compare it")
    which = drill.add_mutually_exclusive_group()
    which.add_argument("dump", metavar="DUMP", type=Path, nargs="?", help="another dump than the newest in DIR")
    which.add_argument("--database", metavar="NAME", help="the newest of this database, where DIR has those of several")
    drill.add_argument(
        "--on-server", action="store_true", help="in a database of its own on the configured server instead"
    )
    drill.set_defaults(run=_drill)

    base_backups.add(commands)

    for one in (dump, listing, prune, schedule):
        add_folder(one)
    for one in (verify, drill):
        add_folder(one, required=False)
    for one in (dump, listing, verify, prune, drill):
        add_json(one)


def _dump(arguments: argparse.Namespace) -> None:
    with autocommit(arguments) as conn:
        made = backup.make_dump(conn, arguments.folder)
    if arguments.json:
        print_json(asdict(made))
    else:
        print(
            f"{made.path}: {size_text(made.size)}, {len(made.contents.tables)} tables, {made.contents.rows:,} "
            "rows, verified"
        )


def _list(arguments: argparse.Namespace) -> None:
    print_records(
        backup.list_backups(arguments.folder),
        as_json=arguments.json,
        empty=f"there are no backups in {arguments.folder}",
    )


def _verify(arguments: argparse.Namespace) -> int:
    paths = arguments.backups or [one.path for one in backup.list_backups(_folder(arguments))]
    if not paths:
        raise BackupError(f"there are no backups in {arguments.folder}")
    faults: dict[str, str | None] = {}
    for path in paths:
        try:
            backup.verify_backup(path)
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
    removed = backup.prune_backups(
        arguments.folder, keep_days=arguments.keep_days, keep=arguments.keep, dry_run=arguments.dry_run
    )
    print_records(removed, as_json=arguments.json, empty="there is nothing to remove")
    if removed and not arguments.json:
        print("nothing was removed yet (--dry-run)" if arguments.dry_run else "removed")


def _schedule(arguments: argparse.Namespace) -> None:
    printed = backup.daily_schedule(
        arguments.folder,
        command=shutil.which("kimera-sql") or "kimera-sql",
        os_user=arguments.os_user,
        receive=arguments.receive_wal,
    )
    print(printed, end="")


def _drill(arguments: argparse.Namespace) -> int:
    dump = arguments.dump or backup.newest_dump(_folder(arguments), database=arguments.database)
    if arguments.on_server:
        with autocommit(arguments) as conn:
            done = backup.run_drill(dump, conn=conn)
    else:
        done = backup.run_drill(dump)
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
