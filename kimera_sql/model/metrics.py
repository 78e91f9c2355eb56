"""The values of metrics: see kimera_sql.metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .. import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMetric:
    """A measurement to insert.

    metric_value: a finite number, in the unit its name says. context: a JSON object.
    timestamp: aware; the server's clock if None.
    """

    metric_name: str
    metric_value: float
    component: str
    context: Mapping[str, Any] = field(default_factory=dict)
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A stored measurement."""

    id: int
    timestamp: datetime
    metric_name: str
    metric_value: float
    component: str
    context: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The measurements of one stretch of time, which begins at bucket.

    p95 is the 95th percentile, interpolated as percentile_cont does.
    """

    bucket: datetime
    count: int
    mean: float
    min: float
    max: float
    p95: float


def values(new: NewMetric | Metric) -> dict[str, Any]:
    """Return the columns to write, in the order of the query copy_in. Raises InvalidValue."""
    return {
        "timestamp": checks.optional(checks.moment, "timestamp", new.timestamp),
        "metric_name": checks.label("metric_name", new.metric_name),
        "metric_value": checks.number("metric_value", new.metric_value),
        "component": checks.label("component", new.component),
        "context": checks.json_object("context", new.context),
    }


def identifier(field: str, value: int) -> int:
    return checks.integer(field, value, least=-(2**63), most=2**63 - 1)
