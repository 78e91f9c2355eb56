"""Portal configurations: the ways between dimensions, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from . import checks, sql
from .entity import Entity
from .errors import InvalidValue, NotFound
from .sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPortal:
    """A portal to insert.

    source_dimension, target_dimension: 32-bit integers. radius, energy_requirement, stability_factor: finite
    numbers, energy_requirement not negative. configuration_parameters: a JSON object. status: 'active' is what
    route looks for. creation_timestamp: aware; the server's clock if None. id: a random one if None.
    """

    source_dimension: int
    target_dimension: int
    radius: float
    energy_requirement: float
    stability_factor: float
    configuration_parameters: Mapping[str, Any] = field(default_factory=dict)
    status: str = "active"
    creation_timestamp: datetime | None = None
    last_used_timestamp: datetime | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Portal:
    """A stored portal."""

    id: UUID
    source_dimension: int
    target_dimension: int
    radius: float
    energy_requirement: float
    stability_factor: float
    creation_timestamp: datetime
    last_used_timestamp: datetime | None
    configuration_parameters: dict[str, Any] = field(hash=False)
    status: str


_queries = sql.Queries("portals")


def _values(new: NewPortal | Portal) -> dict[str, Any]:
    energy = checks.number("energy_requirement", new.energy_requirement)
    if energy < 0:
        raise InvalidValue(f"energy_requirement: {energy} is negative")
    return {
        "id": checks.optional_identifier("id", new.id),
        "source_dimension": checks.integer("source_dimension", new.source_dimension),
        "target_dimension": checks.integer("target_dimension", new.target_dimension),
        "radius": checks.number("radius", new.radius),
        "energy_requirement": energy,
        "stability_factor": checks.number("stability_factor", new.stability_factor),
        "creation_timestamp": checks.optional_moment("creation_timestamp", new.creation_timestamp),
        "last_used_timestamp": checks.optional_moment("last_used_timestamp", new.last_used_timestamp),
        "configuration_parameters": checks.json_object("configuration_parameters", new.configuration_parameters),
        "status": checks.text("status", new.status),
    }


entity = Entity(_queries, Portal, _values, checks.identifier, clock="creation_timestamp")
insert = entity.insert
insert_many = entity.insert_many
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream


def between(conn: Connection, source_dimension: int, target_dimension: int, *, limit: int = 100) -> list[Portal]:
    """Return the portals that lead straight from one dimension to another, the cheapest first."""
    rows = _queries.between.fetchall(
        conn,
        source_dimension=checks.integer("source_dimension", source_dimension),
        target_dimension=checks.integer("target_dimension", target_dimension),
        limit=checks.limit(limit),
    )
    return sql.records(conn, Portal, rows)


def by_status(conn: Connection, status: str, *, limit: int = 100) -> list[Portal]:
    """Return the portals of a status, the newest first."""
    rows = _queries.by_status.fetchall(conn, status=checks.text("status", status), limit=checks.limit(limit))
    return sql.records(conn, Portal, rows)


def mark_used(conn: Connection, id: UUID, *, at: datetime | None = None) -> datetime:
    """Note that a portal was used, now or *at* (aware), and return when it was used last. Raises NotFound."""
    return entity.update(conn, _queries.mark_used, datetime, id, at=checks.optional_moment("at", at))


def set_status(conn: Connection, id: UUID, status: str) -> None:
    """Change a portal's status. Raises NotFound."""
    if not _queries.set_status.execute(conn, id=checks.identifier("id", id), status=checks.text("status", status)):
        raise NotFound(f"no row has the id {id}")


def update_parameters(conn: Connection, id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *changes* into a portal's parameters, key by key at the top level, and return all. Raises NotFound."""
    changed = checks.json_object("changes", changes)
    return entity.update(conn, _queries.update_parameters, dict, id, changes=changed)


def route(
    conn: Connection, source_dimension: int, target_dimension: int, *, max_steps: int = 20
) -> list[Portal] | None:
    """Return the active portals that lead from one dimension to another for the least energy in all, in their order.

    [] when the two are the same dimension, None when no way of at most *max_steps* leads there.
    """
    source = checks.integer("source_dimension", source_dimension)
    target = checks.integer("target_dimension", target_dimension)
    if source == target:
        return []
    rows = _queries.route.fetchall(
        conn,
        source_dimension=source,
        target_dimension=target,
        max_steps=checks.limit(max_steps, "max_steps"),
    )
    return sql.records(conn, Portal, rows) or None
