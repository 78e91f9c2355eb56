"""The values of geoids: see kimera_sql.geoids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict, Unpack
from uuid import UUID

from .. import checks
from ..vectors import Vector, VectorLike, as_vector, same


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


@dataclass(frozen=True, slots=True)
class Bucket:
    """The states of one stretch of time, which begins at bucket.

    p95 is the 95th percentile, interpolated as percentile_cont does.
    """

    bucket: datetime
    count: int
    mean_entropy: float
    min_entropy: float
    max_entropy: float
    p95_entropy: float
    mean_coherence_factor: float
    min_coherence_factor: float
    max_coherence_factor: float
    p95_coherence_factor: float
    mean_energy_level: float
    min_energy_level: float
    max_energy_level: float
    p95_energy_level: float


@dataclass(frozen=True, slots=True)
class Gone:
    """How many states were deleted, and how many transitions with them."""

    states: int
    transitions: int


class Filters(TypedDict, total=False):
    """What searches, summaries and deletes can be narrowed by; all that are given must hold.

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


def values(new: NewGeoid | Geoid) -> dict[str, Any]:
    """Return the columns to write, in the order of the query copy_in. Raises InvalidValue."""
    return {
        "id": checks.optional(checks.identifier, "id", new.id),
        "timestamp": checks.optional(checks.moment, "timestamp", new.timestamp),
        "metadata": checks.json_object("metadata", new.metadata),
        "entropy": checks.number("entropy", new.entropy),
        "coherence_factor": checks.number("coherence_factor", new.coherence_factor),
        "energy_level": checks.number("energy_level", new.energy_level),
        "creation_context": checks.optional(checks.text, "creation_context", new.creation_context),
        "tags": checks.labels("tags", new.tags),
        "state_vector": as_vector(new.state_vector, field="state_vector"),
    }


def where(**filters: Unpack[Filters]) -> dict[str, Any]:
    """Return the parameters that *filters* are in every query that has them. Raises InvalidValue."""
    checks.keywords(filters, Filters)
    least, most = checks.limits("entropy", filters.get("entropy"))
    return {
        "tags_all": checks.optional(checks.texts, "tags_all", filters.get("tags_all")),
        "tags_any": checks.optional(checks.texts, "tags_any", filters.get("tags_any")),
        "entropy_min": least,
        "entropy_max": most,
        "since": checks.optional(checks.moment, "since", filters.get("since")),
        "until": checks.optional(checks.moment, "until", filters.get("until")),
        "metadata": checks.optional(checks.json_object, "metadata", filters.get("metadata")),
    }
