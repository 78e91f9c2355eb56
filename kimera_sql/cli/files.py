"""`kimera-sql load` and `kimera-sql unload`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import files, tables
from .connection import pool


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options of load."""
    _add_file(parser, "a .parquet, .jsonl, .npy or .npz; beside the last two there is a .jsonl with the other columns")
    parser.add_argument(
        "--set-aside",
        metavar="FILE",
        type=Path,
        help="write rows that cannot be stored into this new file, and load the others",
    )
    parser.set_defaults(run=_load)


def add_unload(parser: argparse.ArgumentParser) -> None:
    """Add the options of unload."""
    _add_file(parser, "its suffix says how: .parquet, .jsonl, .npy or .npz, the last two with a .jsonl beside them")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    parser.set_defaults(run=_unload)


def _add_file(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("table", choices=tables.NAMES, metavar="TABLE", help=", ".join(tables.NAMES))
    parser.add_argument("file", type=Path, metavar="FILE", help=help)


def _load(arguments: argparse.Namespace) -> None:
    with pool(arguments) as opened, opened.connection() as conn:
        loaded = files.load(conn, arguments.table, arguments.file, set_aside=arguments.set_aside)
    print(f"{loaded.rows:,} rows loaded into {loaded.table}")
    if loaded.set_aside:
        rows = "1 row was" if loaded.set_aside == 1 else f"{loaded.set_aside:,} rows were"
        print(f"kimera-sql: {rows} set aside in {arguments.set_aside}", file=sys.stderr)


def _unload(arguments: argparse.Namespace) -> None:
    with pool(arguments) as opened, opened.connection() as conn:
        unloaded = files.unload(conn, arguments.table, arguments.file, force=arguments.force)
    print(f"{unloaded.rows:,} rows of {unloaded.table} written into {' and '.join(map(str, unloaded.files))}")
