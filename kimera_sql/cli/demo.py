"""`kimera-sql demo`."""

from __future__ import annotations

import argparse

from .. import demo, embedded
from ..connect import open_pool
from ..errors import SettingsError
from .connection import pool


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--query", metavar="TEXT", action="append", default=[], help="search for TEXT (can be given again)"
    )
    parser.set_defaults(run=_demo)


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
