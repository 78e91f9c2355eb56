"""The roles of schema/roles.sql: groups with no more privileges than they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import psycopg

from .. import checks, sql
from ..errors import InvalidValue, MaintenanceError
from ..sql import Connection
from ..tables import BOOKKEEPING, NAMES
from . import maintenance

_queries = sql.Queries("roles")

PREFIX: Final = "kimera"
"""What the names of the groups begin with unless told otherwise."""

_GROUP: Final = re.compile(r"\bkimera_(?=(?:owner|app|readonly|monitor|backup)\b)")


@dataclass(frozen=True, slots=True)
class LostLogin:
    """A login that may read the tables, and whose search path does not find them, or pgvector.

    role: None for one that is made later and has no settings of its own. remedy: the statement that mends it.
    """

    role: str | None
    path: str
    remedy: str


def script(*, prefix: str = PREFIX) -> str:
    """Return the SQL that create runs: schema/roles.sql, told the tables. By hand: psql --single-transaction.

    The groups are *prefix*_owner and so on. Raises InvalidValue for a prefix that would have to be quoted in SQL.
    """
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,49}", checks.text("prefix", prefix)):
        raise InvalidValue(f"prefix: expected up to 50 of a to z, 0 to 9 and _, got {prefix!r}")
    lists = {"kimera.tables": NAMES, "kimera.bookkeeping": BOOKKEEPING}
    told = "".join(f"SET LOCAL {name} = '{{{','.join(tables)}}}';\n" for name, tables in lists.items())
    return told + _GROUP.sub(f"{prefix}_", (sql.shipped("schema") / "roles.sql").read_text(encoding="utf-8"))


def create(conn: Connection, *, prefix: str = PREFIX) -> None:
    """Make the roles, or bring them up to date, in one transaction.

    They are for the tables that *conn* finds, in whichever schema these are. Roles belong to the whole server: groups
    of the same *prefix* that another database lets in are refused, because their members would get into this one.

    Raises MaintenanceError for that, and where this role may not, SchemaError where the tables are missing, and
    UnsupportedByServer on SQLite.
    """
    server = sql.require_postgres(conn, "SQLite has no roles; whoever can open the file can do everything")
    text = script(prefix=prefix)
    maintenance.rights(server)  # a missing table is told before anything is made
    try:
        with sql.transaction(server):
            sql.script(server, text)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException) as error:
        hint = "; run this as a superuser" if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
        raise MaintenanceError(f"roles.sql: {error.diag.message_primary}{hint}; nothing was changed") from error


def lost(conn: Connection) -> list[LostLogin]:
    """Return the logins that may read the tables that *conn* finds, and would not find them. SQLite has none."""
    return _queries.lost.fetchall(conn, LostLogin, tables=[*NAMES, *BOOKKEEPING]) if sql.is_postgres(conn) else []
