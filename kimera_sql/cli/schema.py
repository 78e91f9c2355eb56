"""`kimera-sql init`."""

from __future__ import annotations

import argparse

from ..migrations import differences, migrate, pending
from .connection import pool


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 where the tables are not as init makes them"
    )
    parser.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    with pool(arguments) as opened, opened.connection() as conn:
        if arguments.check:
            lacking = [f"not applied: {name}" for name in pending(conn)] or [*map(str, differences(conn))]
            print("\n".join(lacking) or "the schema is as it should be")
            return 1 if lacking else 0
        applied = migrate(conn)
    print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")
    return 0
