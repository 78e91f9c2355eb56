"""The tables: one list, which copying, upkeep, indexes, recall, roles, backups and verify read.

A new entity is a line here; docs/architecture.md says what else. tests/test_tables.py compares the list with the
catalogue of a migrated database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Table:
    """A table with rows of its users. entity: its module, and the name of its files of queries.

    vector: its column of vectors, which searches and vector indexes are for, and vector_index the specification's
    index on it; None without one.
    """

    name: str
    entity: str
    vector: str | None = None
    vector_index: str | None = None


TABLES: Final = (
    Table("geoid_states", "geoids", vector="state_vector", vector_index="idx_geoid_vector"),
    Table("cognitive_transitions", "transitions"),
    Table("semantic_embeddings", "embeddings", vector="embedding", vector_index="idx_embedding_vector"),
    Table("portal_configurations", "portals"),
    Table("system_metrics", "metrics"),
)
"""Every table, one that others refer to before them: the order in which rows can be inserted."""

NAMES: Final = tuple(table.name for table in TABLES)

VECTOR_TABLES: Final = {table.name: table for table in TABLES if table.vector is not None}
"""Those that have vectors, by name."""

BOOKKEEPING: Final = (
    "kimera_migrations",
    "kimera_vector_indexes",
    "kimera_recall_settings",
    "kimera_sampled_searches",
    "kimera_sampled_recalls",
    "kimera_models",
    "kimera_renewal_queue",
    "kimera_text_locks",
)
"""What kimera_sql keeps for itself beside them."""


def named(name: str) -> Table:
    """Return the table *name*. Raises InvalidValue if there is none."""
    for table in TABLES:
        if table.name == name:
            return table
    raise InvalidValue(f"table: expected one of {', '.join(NAMES)}, got {name!r}")


def with_vectors(name: str) -> Table:
    """Return the table *name*, which has vectors. Raises InvalidValue for any other."""
    if name not in VECTOR_TABLES:
        raise InvalidValue(f"table: expected one of {', '.join(VECTOR_TABLES)}, got {name!r}")
    return VECTOR_TABLES[name]
