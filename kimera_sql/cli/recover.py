"""`kimera-sql recover`: point-in-time recovery."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from ..errors import SettingsError
from ..ops import backup
from .output import add_json, print_json


def add(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the options of `kimera-sql recover`."""
    parser.add_argument("--base", type=Path, metavar="DIR", required=True, help="the base backup")
    parser.add_argument("--archive", type=Path, metavar="DIR", required=True, help="the archive of WAL")
    parser.add_argument("--data-dir", type=Path, metavar="NEW", required=True, help="the recovered server's folder")
    targets = parser.add_mutually_exclusive_group(required=True)
    targets.add_argument("--to", metavar="TIME", help="with its time zone, such as 2025-07-04T08:15:00+00:00")
    targets.add_argument("--to-name", metavar="NAME", help="a restore point of pg_create_restore_point")
    targets.add_argument("--to-lsn", metavar="LSN", help="a position in the WAL, such as 0/3000148")
    targets.add_argument("--to-xid", metavar="XID", type=int, help="a transaction")
    targets.add_argument("--to-end", action="store_true", help="everything that the archive has")
    parser.add_argument("--os-user", metavar="USER", help="whom the server runs as, for root (the archive's owner)")
    parser.add_argument(
        "--keep-running", action="store_true", help="leave the server running, on a socket in its folder alone"
    )
    add_json(parser)
    parser.set_defaults(run=_recover)


def _recover(arguments: argparse.Namespace) -> None:
    target = backup.Target(
        time=None if arguments.to is None else _time(arguments.to),
        name=arguments.to_name,
        lsn=arguments.to_lsn,
        xid=arguments.to_xid,
    )
    recovered = backup.recover(
        arguments.base,
        arguments.archive,
        arguments.data_dir,
        target,
        os_user=arguments.os_user,
        keep_running=arguments.keep_running,
    )
    if arguments.json:
        print_json(asdict(recovered))
        return
    last = "nothing was committed since the base backup"
    if recovered.last_commit is not None:
        last = f"the last commit is of {recovered.last_commit.isoformat(' ')}"
    print(f"{recovered.data_dir}: {last}; replayed up to {recovered.lsn}, now timeline {recovered.timeline}")
    if recovered.stopped:
        print(recovered.stopped)
    print("".join(f"{note}\n" for note in recovered.notes), end="")
    print(f"it runs: connect with host={recovered.data_dir}" if recovered.running else "it is stopped")
    if recovered.commands:
        print("as root, to make it a cluster of Debian's, once it is stopped:")
        print("".join(f"  {command}\n" for command in recovered.commands), end="")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text.removesuffix(" UTC") + "+00:00" if text.endswith(" UTC") else text)
    except ValueError:
        raise SettingsError(f"--to: expected a time such as 2025-07-04T08:15:00+00:00, got {text!r}") from None
    if time.utcoffset() is None:
        raise SettingsError(f"--to: {text} has no time zone; write one behind it, as in {time.isoformat()}+00:00")
    return time
