"""The values of portals: see kimera_sql.portals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import checks
from ..errors import InvalidValue


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


def values(new: NewPortal | Portal) -> dict[str, Any]:
    """Return the columns to write, in the order of the query copy_in. Raises InvalidValue."""
    energy = checks.number("energy_requirement", new.energy_requirement)
    if energy < 0:
        raise InvalidValue(f"energy_requirement: {energy} is negative")
    return {
        "id": checks.optional(checks.identifier, "id", new.id),
        "source_dimension": checks.integer("source_dimension", new.source_dimension),
        "target_dimension": checks.integer("target_dimension", new.target_dimension),
        "radius": checks.number("radius", new.radius),
        "energy_requirement": energy,
        "stability_factor": checks.number("stability_factor", new.stability_factor),
        "creation_timestamp": checks.optional(checks.moment, "creation_timestamp", new.creation_timestamp),
        "last_used_timestamp": checks.optional(checks.moment, "last_used_timestamp", new.last_used_timestamp),
        "configuration_parameters": checks.json_object("configuration_parameters", new.configuration_parameters),
        "status": checks.label("status", new.status),
    }
