"""Geoid states: 1024-dimensional vectors with entropy, coherence, energy, metadata and tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, Unpack
from uuid import UUID

import numpy as np

from . import checks, search, sql
from .entity import Entity
from .errors import NotFound
from .sql import Connection
from .vectors import Vector, VectorLike, as_vector, same


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGeoid:
    """A state to insert.

    state_vector: shape (1024,). entropy, coherence_factor, energy_level: finite numbers. metadata: a JSON object.
    timestamp: aware; the server's clock if None. id: a random one if None.
    """

    state_vector: VectorLike
    entropy: float
    coherence_factor: float
    energy_level: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    creation_context: str | None = None
    tags: Sequence[str] = ()
    timestamp: datetime | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class GeoidSummary:
    """A stored state without its vector, as searches return it."""

    id: UUID
    timestamp: datetime
    metadata: dict[str, Any] = field(hash=False)
    entropy: float
    coherence_factor: float
    energy_level: float
    creation_context: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Geoid(GeoidSummary):
    """A stored state. state_vector: read-only float32 of shape (1024,)."""

    state_vector: Vector

    __eq__ = same
    __hash__ = GeoidSummary.__hash__


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A state found by similarity: 1 - cosine distance, from -1 to 1. vector: only where asked for."""

    geoid: GeoidSummary
    similarity: float
    vector: Vector | None

    __eq__ = same
    __hash__ = None  # type: ignore[assignment]


class Filters(TypedDict, total=False):
    """What find, similar and similar_to can be narrowed by; all that are given must hold.

    tags_all: has every one of these tags. tags_any: has at least one of them.
    entropy: (least, most), both included; None for an open end.
    since, until: aware datetimes; from the first up to, not including, the second.
    metadata: contains this JSON object (PostgreSQL's @>).
    """

    tags_all: Sequence[str] | None
    tags_any: Sequence[str] | None
    entropy: tuple[float | None, float | None] | None
    since: datetime | None
    until: datetime | None
    metadata: Mapping[str, Any] | None


_queries = sql.Queries("geoids")


def _values(new: NewGeoid | Geoid) -> dict[str, Any]:
    return {
        "id": checks.optional_identifier("id", new.id),
        "timestamp": checks.optional_moment("timestamp", new.timestamp),
        "metadata": checks.json_object("metadata", new.metadata),
        "entropy": checks.number("entropy", new.entropy),
        "coherence_factor": checks.number("coherence_factor", new.coherence_factor),
        "energy_level": checks.number("energy_level", new.energy_level),
        "creation_context": checks.optional_text("creation_context", new.creation_context),
        "tags": checks.texts("tags", new.tags),
        "state_vector": as_vector(new.state_vector, field="state_vector"),
    }


def _where(
    *,
    tags_all: Sequence[str] | None = None,
    tags_any: Sequence[str] | None = None,
    entropy: tuple[float | None, float | None] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    least, most = checks.limits("entropy", entropy)
    return {
        "tags_all": None if tags_all is None else checks.texts("tags_all", tags_all),
        "tags_any": None if tags_any is None else checks.texts("tags_any", tags_any),
        "entropy_min": least,
        "entropy_max": most,
        "since": checks.optional_moment("since", since),
        "until": checks.optional_moment("until", until),
        "metadata": None if metadata is None else checks.json_object("metadata", metadata),
    }


entity = Entity(_queries, Geoid, _values, checks.identifier, vector="state_vector")
insert = entity.insert
insert_many = entity.insert_many
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream


def find(conn: Connection, *, limit: int = 100, **filters: Unpack[Filters]) -> list[GeoidSummary]:
    """Return at most *limit* states that pass all *filters* (see Filters), the newest first."""
    rows = _queries.find.fetchall(conn, limit=checks.limit(limit), **_where(**filters))
    return sql.records(conn, GeoidSummary, rows)


def latest(conn: Connection, limit: int = 10) -> list[GeoidSummary]:
    """Return the *limit* newest states, the newest first."""
    return find(conn, limit=limit)


def similar(
    conn: Connection,
    vector: VectorLike,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* states nearest to *vector* by cosine, the most similar first, that pass all *filters*.

    *vector*: shape (1024,). The search is approximate where a vector index is built, unless *exact*; similarities are
    exact either way, and *k* hits come back where as many states pass. *recall* is the share of the true nearest that
    it is to find (0.95 unless told otherwise), with the settings that recall.tune measured; *ef_search* (hnsw) or
    *probes* (ivfflat) set them by hand. *with_vectors* fetches each hit's vector too. *diversity*, from 0 to 1, prefers
    hits that are unlike each other (maximal marginal relevance).
    Raises VectorError for a vector that cannot be searched for.
    """
    options = search.Options(exact, probes, ef_search, recall)
    where = {"other_than": None, **_where(**filters)}
    return _hits(conn, as_vector(vector), k, where, options, with_vectors, diversity)


def similar_to(
    conn: Connection,
    id: UUID,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
    **filters: Unpack[Filters],
) -> list[Hit]:
    """Return the *k* states nearest to the state *id*, without itself; otherwise as similar. Raises NotFound."""
    options = search.Options(exact, probes, ef_search, recall)
    where = {"other_than": checks.identifier("id", id), **_where(**filters)}
    vector = _queries.vector_of.fetchval(conn, np.ndarray, id=id)
    if vector is None:
        raise NotFound(f"no row has the id {id}")
    return _hits(conn, vector, k, where, options, with_vectors, diversity)


def similar_many(
    conn: Connection,
    vectors: Iterable[VectorLike],
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    **filters: Unpack[Filters],
) -> list[list[Hit]]:
    """Return what similar gives for each of *vectors*, asked all at once in one pipeline."""
    options = search.Options(exact, probes, ef_search, recall)
    where = {"other_than": None, **_where(**filters)}
    asked = [as_vector(vector, field=f"vectors[{number}]") for number, vector in enumerate(vectors)]
    found = search.nearest_many(conn, search.GEOID_STATES, asked, checks.limit(k, "k"), where, options)
    return [_made(conn, hits) for hits in found]


def explain(
    conn: Connection,
    vector: VectorLike,
    k: int = 10,
    *,
    exact: bool = False,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
    **filters: Unpack[Filters],
) -> search.Explanation:
    """Say by which index, with which settings and by which plan similar would search, and why; print it.

    Raises UnsupportedByServer on SQLite.
    """
    options = search.Options(exact, probes, ef_search, recall)
    where = {"other_than": None, **_where(**filters)}
    return search.explain(conn, search.GEOID_STATES, as_vector(vector), checks.limit(k, "k"), where, options)


def _hits(
    conn: Connection,
    vector: Vector,
    k: int,
    where: dict[str, Any],
    options: search.Options,
    with_vectors: bool,
    diversity: float,
) -> list[Hit]:
    found = search.varied(
        conn,
        search.GEOID_STATES,
        vector,
        checks.limit(k, "k"),
        where,
        options,
        with_vectors=with_vectors,
        diversity=diversity,
    )
    return _made(conn, found)


def _made(conn: Connection, found: list[search.Found]) -> list[Hit]:
    summary = sql.mapper(conn, GeoidSummary)
    return [Hit(summary(row), similarity, vector) for row, similarity, vector in found]


def update_metadata(conn: Connection, id: UUID, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *changes* into a state's metadata, key by key at the top level, and return the whole. Raises NotFound."""
    changed = checks.json_object("changes", changes)
    return entity.update(conn, _queries.update_metadata, dict, id, changes=changed)


def add_tags(conn: Connection, id: UUID, *tags: str) -> tuple[str, ...]:
    """Add those of *tags* that a state does not have, and return all it has. Raises NotFound."""
    return entity.update(conn, _queries.add_tags, tuple, id, tags=checks.texts("tags", tags))


def remove_tags(conn: Connection, id: UUID, *tags: str) -> tuple[str, ...]:
    """Take *tags* away from a state, and return those that are left. Raises NotFound."""
    return entity.update(conn, _queries.remove_tags, tuple, id, tags=checks.texts("tags", tags))
