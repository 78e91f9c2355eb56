"""What is wrong with a database, and what to do: facts are gathered once, and findings decided from them alone."""

from __future__ import annotations

from pathlib import Path

from ...sql import Connection
from .. import tuning
from .facts import Extension, Facts, Session, Transport, gather
from .findings import Finding, diagnose
from .severity import SEVERITIES, Severity

__all__ = [
    "SEVERITIES",
    "Extension",
    "Facts",
    "Finding",
    "Session",
    "Severity",
    "Transport",
    "diagnose",
    "examine",
    "gather",
]


def examine(
    conn: Connection,
    *,
    backups: Path | None = None,
    pool_connections: int = tuning.CONNECTIONS,
    processes: int = 1,
    memory: int | None = None,
) -> list[Finding]:
    """Return what is wrong with the database and its server, the gravest first.

    backups: the folder of the backups; the newest of this database should be from the last 26 hours.
    pool_connections: how many connections the pool of one process can open; *processes* have such a pool. memory: that
    of the server's machine in bytes; it need not be given where that is this machine. Raises InvalidValue for a number
    that cannot be, and UnsupportedByServer on SQLite.
    """
    return diagnose(
        gather(conn, backups=backups, pool_connections=pool_connections, processes=processes, memory=memory)
    )
