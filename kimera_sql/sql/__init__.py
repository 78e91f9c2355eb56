"""Named queries: queries/<dialect>/<entity>.sql, loaded once with aiosql, run by the connection's driver.

A query begins with a line that has its name, its parameters and a suffix. The suffix says what it returns: nothing for
many rows, ^ for one row or None, $ for one value, ! for the number of rows it changed, # for a COPY. The comment lines
below are its documentation. Some of them are notes:

    -- plan: custom             plan the query anew each time, because a generic plan would be slow
    -- types: uuid, vector      the column types of a COPY ... FROM STDIN (FORMAT BINARY)

and others are for kimera_sql.verify, and for calling a query as a function:

    -- returns: Dream           a row becomes this dataclass, whose fields are the columns in order
    -- returns: Dream, rank int, note str | None        a row becomes a tuple of the dataclass and further columns
    -- returns: UUID            a row becomes this one value
    -- takes: NewDream          the parameters are this dataclass's fields
    -- takes: since datetime | None                     the types of some parameters, with None where NULL may be passed
    -- nullable: rank           columns that can be NULL, where the statement does not show it
    -- not null: rank           columns that cannot be NULL, although the statement suggests they can
    -- uses: idx_geoid_tags     the indexes that its plan must use
    -- needs: postgres 16       the oldest server it runs on; or `vector 0.7`; or an extension's name alone;
                                `postgres below 17` sets an upper limit
    -- only: postgres           SQLite has no query of that name
    -- like: similar_exact      it finds the rows of that query another way, by the same parameters and conditions
    -- like: find, +bucket, -limit                      but for what only this query has (+) or only that one (-):
                                parameters of these names, and conditions that mention them

A note can be repeated: its lines are joined with commas.
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
    is_sqlite,
    require_postgres,
    script,
    snapshot,
    transaction,
    without_timeouts,
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
