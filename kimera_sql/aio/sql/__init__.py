"""Named queries on asynchronous connections; see kimera_sql.sql."""

from ...sql.files import Dialect, Statement, shipped, statements
from ...sql.rows import Row
from ...sql.versions import version
from .load import Library, load
from .run import (
    Connection,
    Queries,
    Query,
    atomic,
    dialect,
    is_postgres,
    is_sqlite,
    require_postgres,
    script,
    snapshot,
    transaction,
    without_timeouts,
)

__all__ = [
    "Connection",
    "Dialect",
    "Library",
    "Queries",
    "Query",
    "Row",
    "Statement",
    "atomic",
    "dialect",
    "is_postgres",
    "is_sqlite",
    "load",
    "require_postgres",
    "script",
    "shipped",
    "snapshot",
    "statements",
    "transaction",
    "version",
    "without_timeouts",
]
