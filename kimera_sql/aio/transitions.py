"""Cognitive transitions: the directed steps between geoid states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from .. import checks
from ..model.transitions import Bucket, EnergyBalance, NewTransition, Transition, values
from . import sql
from .entity import Entity
from .search import catalogue
from .sql import Connection

__all__ = [
    "Bucket",
    "EnergyBalance",
    "NewTransition",
    "Transition",
    "between",
    "by_type",
    "count",
    "delete",
    "energy_balance",
    "entity",
    "get",
    "get_many",
    "incoming",
    "insert",
    "insert_arrow",
    "insert_many",
    "outgoing",
    "path",
    "record",
    "stream",
    "stream_arrow",
    "summary",
    "trajectory",
    "unbalanced",
]

_queries = sql.Queries("transitions")

entity = Entity(_queries, NewTransition, Transition, values, checks.identifier)
insert = entity.insert
insert_many = entity.insert_many
insert_arrow = entity.insert_arrow
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream
stream_arrow = entity.stream_arrow


async def record(
    conn: Connection,
    source_id: UUID,
    target_id: UUID,
    transition_type: str,
    *,
    energy: float,
    error: float = 0.0,
    metadata: Mapping[str, Any] | None = None,
) -> Transition:
    """Insert a transition that happens now: insert, without writing out a NewTransition.

    Raises psycopg's ForeignKeyViolation when a state does not exist.
    """
    return await insert(
        conn,
        NewTransition(
            source_id=source_id,
            target_id=target_id,
            transition_type=transition_type,
            transition_energy=energy,
            conservation_error=error,
            metadata={} if metadata is None else metadata,
        ),
    )


async def outgoing(conn: Connection, state_id: UUID, *, limit: int = 100) -> list[Transition]:
    """Return the transitions that lead away from a state, the newest first."""
    return await _queries.outgoing.fetchall(
        conn, Transition, state_id=checks.identifier("state_id", state_id), limit=checks.limit(limit)
    )


async def incoming(conn: Connection, state_id: UUID, *, limit: int = 100) -> list[Transition]:
    """Return the transitions that lead to a state, the newest first."""
    return await _queries.incoming.fetchall(
        conn, Transition, state_id=checks.identifier("state_id", state_id), limit=checks.limit(limit)
    )


async def by_type(conn: Connection, transition_type: str, *, limit: int = 100) -> list[Transition]:
    """Return the transitions of a type, the newest first."""
    return await _queries.by_type.fetchall(
        conn, Transition, transition_type=checks.text("transition_type", transition_type), limit=checks.limit(limit)
    )


async def between(conn: Connection, since: datetime, until: datetime, *, limit: int = 100) -> list[Transition]:
    """Return the transitions from *since* up to, not including, *until* (both aware), the oldest first."""
    return await _queries.between.fetchall(
        conn,
        Transition,
        since=checks.moment("since", since),
        until=checks.moment("until", until),
        limit=checks.limit(limit),
    )


async def path(conn: Connection, source_id: UUID, target_id: UUID, *, max_steps: int = 20) -> list[Transition] | None:
    """Return the fewest transitions that lead from one state to another, in their order.

    [] when the two are the same state, None when no way of at most *max_steps* leads there. Where several are as
    short, each step prefers the least energy.
    """
    checks.identifier("source_id", source_id)
    if source_id == checks.identifier("target_id", target_id):
        return []
    steps = checks.limit(max_steps, "max_steps")
    if await catalogue.is_distributed(conn, "cognitive_transitions"):
        return await _path_over_shards(conn, source_id, target_id, steps)
    return (
        await _queries.path.fetchall(conn, Transition, source_id=source_id, target_id=target_id, max_steps=steps)
        or None
    )


async def _path_over_shards(
    conn: Connection, source_id: UUID, target_id: UUID, max_steps: int
) -> list[Transition] | None:
    """Do what the statement path does, a query for each step."""
    ways: dict[UUID, list[Transition]] = {source_id: []}
    seen = {source_id}
    for _ in range(max_steps):
        level: dict[UUID, list[Transition]] = {}
        for step in await _queries.leading_from.fetchall(conn, Transition, states=list(ways)):
            if step.target_id not in seen:
                level.setdefault(step.target_id, [*ways[step.source_id], step])
        if target_id in level or not level:
            return level.get(target_id)
        seen |= level.keys()
        ways = level
    return None


async def trajectory(conn: Connection, state_id: UUID, *, max_steps: int = 100) -> list[Transition]:
    """Return the way onward from a state through time, at most *max_steps* transitions.

    It begins with the state's first transition and goes on, at each state reached, with the first one that is
    later than the one that led there; so it ends even where states repeat.
    """
    checks.identifier("state_id", state_id)
    steps = checks.limit(max_steps, "max_steps")
    if await catalogue.is_distributed(conn, "cognitive_transitions"):
        return await _trajectory_over_shards(conn, state_id, steps)
    return await _queries.trajectory.fetchall(conn, Transition, state_id=state_id, max_steps=steps)


async def _trajectory_over_shards(conn: Connection, state_id: UUID, max_steps: int) -> list[Transition]:
    """Do what the statement trajectory does, a query for each step."""
    way: list[Transition] = []
    last: dict[str, Any] = {"timestamp": None, "id": None}
    while len(way) < max_steps:
        step = await _queries.next_step.fetchone(conn, Transition, state_id=state_id, **last)
        if step is None:
            break
        way.append(step)
        state_id, last = step.target_id, {"timestamp": step.timestamp, "id": step.id}
    return way


async def energy_balance(
    conn: Connection, *, since: datetime | None = None, until: datetime | None = None
) -> list[EnergyBalance]:
    """Return the balance of each type of transition, by type, from *since* up to, not including, *until*."""
    return await _queries.energy_balance.fetchall(
        conn,
        EnergyBalance,
        since=checks.optional(checks.moment, "since", since),
        until=checks.optional(checks.moment, "until", until),
    )


async def summary(
    conn: Connection, bucket: timedelta, *, since: datetime | None = None, until: datetime | None = None
) -> list[Bucket]:
    """Return the transitions from *since* up to, not including, *until*, summed up in buckets of time, oldest first.

    Buckets are counted from 1970-01-01 UTC, and those without a transition are left out.
    """
    return await _queries.summary.fetchall(
        conn,
        Bucket,
        bucket=checks.span("bucket", bucket),
        since=checks.optional(checks.moment, "since", since),
        until=checks.optional(checks.moment, "until", until),
    )


async def unbalanced(conn: Connection, tolerance: float, *, limit: int = 100) -> list[Transition]:
    """Return the transitions whose conservation error is beyond *tolerance* either way, the worst first."""
    return await _queries.unbalanced.fetchall(
        conn, Transition, tolerance=checks.number("tolerance", tolerance), limit=checks.limit(limit)
    )
