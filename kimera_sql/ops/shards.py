"""What the nodes of Citus say of the shards of distributed tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from .. import sql
from ..sql import Connection
from ..tables import NAMES

_queries = sql.Queries("citus")


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a table, or one copy of a reference table. node: where it is.

    answered: whether that could be asked; else all numbers are 0. The numbers are those of monitoring's TableUse and
    Size, as the node's statistics have them. unusable_indexes: how many of the table's indexes the shard lacks, or has
    unfinished.
    """

    table: str
    number: int
    node: str
    answered: bool
    live_rows: int
    dead_rows: int
    changed_rows: int
    table_scans: int
    index_scans: int
    vacuumed_at: datetime | None
    analyzed_at: datetime | None
    heap_bytes: int
    other_bytes: int
    index_bytes: int
    unusable_indexes: int


def distributed(conn: psycopg.Connection[Any]) -> list[str]:
    """Return those of the tables that Citus keeps: in shards, or as a reference table."""
    return [name for (name,) in _queries.distributed.fetchall(conn, tables=list(NAMES))]


def shards(conn: Connection) -> list[Shard]:
    """Return the shards of the tables that Citus keeps, by table and number; none where it keeps none."""
    if not sql.is_postgres(conn) or not distributed(conn):
        return []
    return _queries.shard_states.fetchall(conn, Shard)


def by_table(conn: Connection) -> dict[str, list[Shard]]:
    """Return the shards of each table that Citus keeps."""
    found: dict[str, list[Shard]] = {}
    for shard in shards(conn):
        found.setdefault(shard.table, []).append(shard)
    return found
