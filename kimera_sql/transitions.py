"""Cognitive transitions: the directed steps between geoid states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from . import checks, sql
from .entity import Entity
from .sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTransition:
    """A transition to insert.

    transition_energy, conservation_error: finite numbers. metadata: a JSON object.
    timestamp: aware; the server's clock if None. id: a random one if None.
    """

    source_id: UUID
    target_id: UUID
    transition_energy: float
    conservation_error: float
    transition_type: str
    timestamp: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """A stored transition."""

    id: UUID
    source_id: UUID
    target_id: UUID
    transition_energy: float
    conservation_error: float
    transition_type: str
    timestamp: datetime
    metadata: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class EnergyBalance:
    """The transitions of one type: how many, their energy, and their errors of conservation."""

    transition_type: str
    transitions: int
    total_energy: float
    mean_energy: float
    total_error: float
    largest_error: float


_queries = sql.Queries("transitions")


def _values(new: NewTransition | Transition) -> dict[str, Any]:
    return {
        "id": checks.optional_identifier("id", new.id),
        "source_id": checks.identifier("source_id", new.source_id),
        "target_id": checks.identifier("target_id", new.target_id),
        "transition_energy": checks.number("transition_energy", new.transition_energy),
        "conservation_error": checks.number("conservation_error", new.conservation_error),
        "transition_type": checks.text("transition_type", new.transition_type),
        "timestamp": checks.optional_moment("timestamp", new.timestamp),
        "metadata": checks.json_object("metadata", new.metadata),
    }


entity = Entity(_queries, Transition, _values, checks.identifier)
insert = entity.insert
insert_many = entity.insert_many
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream


def record(
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
    return insert(
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


def outgoing(conn: Connection, state_id: UUID, *, limit: int = 100) -> list[Transition]:
    """Return the transitions that lead away from a state, the newest first."""
    rows = _queries.outgoing.fetchall(conn, state_id=checks.identifier("state_id", state_id), limit=checks.limit(limit))
    return sql.records(conn, Transition, rows)


def incoming(conn: Connection, state_id: UUID, *, limit: int = 100) -> list[Transition]:
    """Return the transitions that lead to a state, the newest first."""
    rows = _queries.incoming.fetchall(conn, state_id=checks.identifier("state_id", state_id), limit=checks.limit(limit))
    return sql.records(conn, Transition, rows)


def by_type(conn: Connection, transition_type: str, *, limit: int = 100) -> list[Transition]:
    """Return the transitions of a type, the newest first."""
    rows = _queries.by_type.fetchall(
        conn, transition_type=checks.text("transition_type", transition_type), limit=checks.limit(limit)
    )
    return sql.records(conn, Transition, rows)


def between(conn: Connection, since: datetime, until: datetime, *, limit: int = 100) -> list[Transition]:
    """Return the transitions from *since* up to, not including, *until* (both aware), the oldest first."""
    rows = _queries.between.fetchall(
        conn,
        since=checks.moment("since", since),
        until=checks.moment("until", until),
        limit=checks.limit(limit),
    )
    return sql.records(conn, Transition, rows)


def path(conn: Connection, source_id: UUID, target_id: UUID, *, max_steps: int = 20) -> list[Transition] | None:
    """Return the fewest transitions that lead from one state to another, in their order.

    [] when the two are the same state, None when no way of at most *max_steps* leads there. Where several are as
    short, each step prefers the least energy.
    """
    checks.identifier("source_id", source_id)
    if source_id == checks.identifier("target_id", target_id):
        return []
    rows = _queries.path.fetchall(
        conn, source_id=source_id, target_id=target_id, max_steps=checks.limit(max_steps, "max_steps")
    )
    return sql.records(conn, Transition, rows) or None


def trajectory(conn: Connection, state_id: UUID, *, max_steps: int = 100) -> list[Transition]:
    """Return the way onward from a state through time, at most *max_steps* transitions.

    It begins with the state's first transition and goes on, at each state reached, with the first one that is
    later than the one that led there; so it ends even where states repeat.
    """
    rows = _queries.trajectory.fetchall(
        conn,
        state_id=checks.identifier("state_id", state_id),
        max_steps=checks.limit(max_steps, "max_steps"),
    )
    return sql.records(conn, Transition, rows)


def energy_balance(
    conn: Connection, *, since: datetime | None = None, until: datetime | None = None
) -> list[EnergyBalance]:
    """Return the balance of each type of transition, by type, from *since* up to, not including, *until*."""
    rows = _queries.energy_balance.fetchall(
        conn, since=checks.optional_moment("since", since), until=checks.optional_moment("until", until)
    )
    return sql.records(conn, EnergyBalance, rows)


def unbalanced(conn: Connection, tolerance: float, *, limit: int = 100) -> list[Transition]:
    """Return the transitions whose conservation error is beyond *tolerance* either way, the worst first."""
    rows = _queries.unbalanced.fetchall(
        conn, tolerance=checks.number("tolerance", tolerance), limit=checks.limit(limit)
    )
    return sql.records(conn, Transition, rows)
