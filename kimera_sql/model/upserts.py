"""What upserts return: see kimera_sql.geoids, kimera_sql.embeddings and kimera_sql.portals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Upserted:
    """How many items became new rows, and how many were written over a row that was there."""

    inserted: int
    updated: int
