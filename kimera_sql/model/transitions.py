"""The values of transitions: see kimera_sql.transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import checks


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


@dataclass(frozen=True, slots=True)
class Bucket:
    """The transitions of one stretch of time, which begins at bucket: their energy and errors of conservation."""

    bucket: datetime
    count: int
    mean_energy: float
    min_energy: float
    max_energy: float
    mean_error: float
    min_error: float
    max_error: float


def values(new: NewTransition | Transition) -> dict[str, Any]:
    """Return the columns to write, in the order of the query copy_in. Raises InvalidValue."""
    return {
        "id": checks.optional(checks.identifier, "id", new.id),
        "source_id": checks.identifier("source_id", new.source_id),
        "target_id": checks.identifier("target_id", new.target_id),
        "transition_energy": checks.number("transition_energy", new.transition_energy),
        "conservation_error": checks.number("conservation_error", new.conservation_error),
        "transition_type": checks.label("transition_type", new.transition_type),
        "timestamp": checks.optional(checks.moment, "timestamp", new.timestamp),
        "metadata": checks.json_object("metadata", new.metadata),
    }
