"""Known faults of the PostgreSQL and pgvector releases that kimera_sql works with, and where they are described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final

from .severity import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFault:
    """A fault of PostgreSQL. source: where it is described. checked: when that was last compared with what is here.

    releases: by major version, the first minor release that has the fault and the first that no longer has it; the
    latter replaces {fixed} in the advice.
    """

    severity: Severity
    releases: Mapping[int, tuple[int, int]]
    found: str
    advice: str
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class PgvectorFault:
    """A fault of pgvector. since, fixed: the first version that has it, and the first that no longer has it."""

    severity: Severity
    since: tuple[int, ...]
    fixed: tuple[int, ...]
    found: str
    advice: str
    source: str
    checked: date


SERVER_FAULTS: Final = (
    ServerFault(
        severity="error",
        releases={15: (0, 6), 16: (0, 2)},
        found="GIN indexes, such as those on tags and metadata, could be corrupted by concurrent updates",
        advice="update the server to {fixed} or later, then run REINDEX INDEX CONCURRENTLY on the GIN indexes",
        source="https://www.postgresql.org/docs/release/16.2/",
        checked=date(2026, 11, 27),
    ),
    ServerFault(
        severity="warning",
        releases={15: (9, 10), 16: (5, 6), 17: (1, 2)},
        found="it breaks extensions that were built for another release, and ALTER ROLE ... SET role has no effect",
        advice="update the server to {fixed} or later",
        source="https://www.postgresql.org/docs/release/17.2/",
        checked=date(2026, 11, 27),
    ),
    ServerFault(
        severity="warning",
        releases={15: (16, 17), 16: (12, 13), 17: (8, 9), 18: (2, 3)},
        found="substring() can fail on long texts that are not ASCII, and standbys of an older primary can stop",
        advice="update the server to {fixed} or later",
        source="https://www.postgresql.org/docs/release/18.3/",
        checked=date(2026, 11, 27),
    ),
    ServerFault(
        severity="warning",
        releases={15: (0, 20), 16: (0, 16), 17: (0, 12), 18: (0, 7)},
        found=(
            "it lacks security fixes of November 2026, among them of a fault that lets a user run code "
            "(CVE-2026-120141)"
        ),
        advice="update the server to {fixed} or later",
        source="https://www.postgresql.org/support/security/CVE-2026-120141/",
        checked=date(2026, 11, 27),
    ),
)

PGVECTOR_FAULTS: Final = (
    PgvectorFault(
        severity="error",
        since=(0, 6),
        fixed=(0, 8, 2),
        found="parallel builds of hnsw indexes, which indexes.build makes, write past a buffer (CVE-2026-3172)",
        advice="update pgvector to 0.8.2 or later; until then SET max_parallel_maintenance_workers = 0",
        source="https://github.com/pgvector/pgvector/issues/959",
        checked=date(2026, 11, 27),
    ),
    PgvectorFault(
        severity="warning",
        since=(0,),
        fixed=(0, 8, 3),
        found="VACUUM can corrupt hnsw indexes (fixed in 0.8.3)",
        advice="update pgvector, then rebuild them: kimera-sql index retrain",
        source="https://github.com/pgvector/pgvector/blob/master/CHANGELOG.md#083-2026-06-17",
        checked=date(2026, 11, 27),
    ),
)
