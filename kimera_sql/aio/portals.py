"""Portal configurations: the ways between dimensions, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import checks
from ..errors import NotFound
from ..model.portals import NewPortal, Portal, values
from ..model.upserts import Upserted
from . import sql
from .sql import Connection
from .upserts import UpsertEntity

__all__ = [
    "NewPortal",
    "Portal",
    "Upserted",
    "between",
    "by_status",
    "count",
    "delete",
    "entity",
    "get",
    "get_many",
    "insert",
    "insert_arrow",
    "insert_many",
    "mark_used",
    "route",
    "set_status",
    "stream",
    "stream_arrow",
    "update_parameters",
    "upsert",
    "upsert_many",
]

_queries = sql.Queries("portals")

entity = UpsertEntity(_queries, NewPortal, Portal, values, checks.identifier, clock="creation_timestamp")
insert = entity.insert
insert_many = entity.insert_many
upsert = entity.upsert
upsert_many = entity.upsert_many
insert_arrow = entity.insert_arrow
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream
stream_arrow = entity.stream_arrow


async def between(conn: Connection, source_dimension: int, target_dimension: int, *, limit: int = 100) -> list[Portal]:
    """Return the portals that lead straight from one dimension to another, the cheapest first."""
    return await _queries.between.fetchall(
        conn,
        Portal,
        source_dimension=checks.integer("source_dimension", source_dimension),
        target_dimension=checks.integer("target_dimension", target_dimension),
        limit=checks.limit(limit),
    )


async def by_status(conn: Connection, status: str, *, limit: int = 100) -> list[Portal]:
    """Return the portals of a status, the newest first."""
    return await _queries.by_status.fetchall(
        conn, Portal, status=checks.text("status", status), limit=checks.limit(limit)
    )


async def mark_used(conn: Connection, id: UUID, *, at: datetime | None = None) -> datetime:
    """Note that a portal was used, now or *at* (aware), and return when it was used last. Raises NotFound."""
    return await entity.update(conn, _queries.mark_used, datetime, id, at=checks.optional(checks.moment, "at", at))


async def set_status(conn: Connection, id: UUID, status: str) -> None:
    """Change a portal's status. Raises NotFound."""
    if not await _queries.set_status.execute(
        conn, id=checks.identifier("id", id), status=checks.label("status", status)
    ):
        raise NotFound(f"no row has the id {id}")


async def update_parameters(conn: Connection, id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *changes* into a portal's parameters, key by key at the top level, and return all. Raises NotFound."""
    changed = checks.json_object("changes", changes)
    return await entity.update(conn, _queries.update_parameters, dict, id, changes=changed)


async def route(
    conn: Connection, source_dimension: int, target_dimension: int, *, max_steps: int = 20
) -> list[Portal] | None:
    """Return the active portals that lead from one dimension to another for the least energy in all, in their order.

    [] when the two are the same dimension, None when no way of at most *max_steps* leads there.
    """
    source = checks.integer("source_dimension", source_dimension)
    target = checks.integer("target_dimension", target_dimension)
    if source == target:
        return []
    return (
        await _queries.route.fetchall(
            conn,
            Portal,
            source_dimension=source,
            target_dimension=target,
            max_steps=checks.limit(max_steps, "max_steps"),
        )
        or None
    )
