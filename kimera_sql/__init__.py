"""SQL-first data layer for 1024-dimensional cognitive states in PostgreSQL with pgvector."""

import logging

from . import embeddings, geoids, metrics, portals, transitions
from .connect import Pool, add_adapters, open_pool
from .errors import (
    BackupError,
    ConnectionFailed,
    CopyError,
    FallbackWarning,
    InvalidValue,
    KimeraError,
    MaintenanceError,
    NotFound,
    QueryError,
    SchemaError,
    SettingsError,
    UnsupportedByServer,
    VectorError,
)
from .migrations import migrate
from .search import indexes, recall
from .settings import Settings
from .sqlite import SqlitePool

# An application that sets up no logging is told by exceptions alone.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "BackupError",
    "ConnectionFailed",
    "CopyError",
    "FallbackWarning",
    "InvalidValue",
    "KimeraError",
    "MaintenanceError",
    "NotFound",
    "Pool",
    "QueryError",
    "SchemaError",
    "Settings",
    "SettingsError",
    "SqlitePool",
    "UnsupportedByServer",
    "VectorError",
    "add_adapters",
    "embeddings",
    "geoids",
    "indexes",
    "metrics",
    "migrate",
    "open_pool",
    "portals",
    "recall",
    "transitions",
]
