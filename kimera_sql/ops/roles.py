"""The roles of schema/roles.sql: groups with no more privileges than they need."""

from __future__ import annotations

import psycopg

from .. import sql
from ..errors import MaintenanceError
from ..sql import Connection
from ..tables import BOOKKEEPING, NAMES
from . import maintenance


def script() -> str:
    """Return the SQL that create runs: schema/roles.sql, told the tables. By hand: psql --single-transaction."""
    lists = {"kimera.tables": NAMES, "kimera.bookkeeping": BOOKKEEPING}
    told = "".join(f"SET LOCAL {name} = '{{{','.join(tables)}}}';\n" for name, tables in lists.items())
    return told + (sql.shipped("schema") / "roles.sql").read_text(encoding="utf-8")


def create(conn: Connection) -> None:
    """Make the roles, or bring them up to date, in one transaction.

    Raises MaintenanceError where this role may not, SchemaError where the tables are missing, and UnsupportedByServer
    on SQLite.
    """
    server = sql.require_postgres(conn, "SQLite has no roles; whoever can open the file can do everything")
    maintenance.rights(server)  # a missing table is told before anything is made
    try:
        with sql.transaction(server):
            sql.script(server, script())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException) as error:
        hint = "; run this as a superuser" if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
        raise MaintenanceError(f"roles.sql: {error.diag.message_primary}{hint}; nothing was changed") from error
