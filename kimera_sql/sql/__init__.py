"""Named queries: queries/<dialect>/<entity>.sql, loaded once with aiosql, run by the connection's driver.

A query begins with its name, its parameters, and a suffix for what it gives: nothing for many rows, ^ for one row or
none, $ for one value, ! for the number of rows it changed, # for a COPY. The comment lines after it are its
documentation. Some of them are notes:

    -- plan: custom             plan it anew each time; a generic plan would be a bad one
    -- types: uuid, vector      the column types of a COPY ... FROM STDIN (FORMAT BINARY)

and others are for kimera_sql.verify, and for calling a query as a function:

    -- returns: Dream           a row becomes this dataclass, whose fields are the columns in their order
    -- returns: Dream, rank int, note str | None        it has further columns; then a row is a tuple
    -- returns: UUID            a row is this one value
    -- takes: NewDream          the parameters are this dataclass's fields
    -- takes: since datetime | None                     the types of some parameters, where NULL is one of them
    -- nullable: rank           columns that can be NULL, where that cannot be told from the statement
    -- not null: rank           columns that never are, although it looks as if they could be
    -- uses: idx_geoid_tags     the indexes that its plan must use
    -- needs: postgres 16       the least version of the server, or `vector 0.7`, or an extension's mere name;
                                `postgres below 17` is the other way round
    -- only: postgres           SQLite has no query of that name
    -- like: similar_exact      it finds the rows of that query another way, by the same parameters and conditions
    -- like: find, +bucket, -limit                      but for what only this query has (+) or only that one (-):
                                parameters of these names, and conditions that mention them

A note can be repeated, which joins its lines with commas.
"""

from .files import Dialect, Statement, shipped, statements
from .load import Library, load
from .rows import Row
from .run import (
    Connection,
    Queries,
    Query,
    atomic,
    dialect,
    is_postgres,
    require_postgres,
    script,
    snapshot,
    transaction,
)
from .versions import version

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
    "load",
    "require_postgres",
    "script",
    "shipped",
    "snapshot",
    "statements",
    "transaction",
    "version",
]
