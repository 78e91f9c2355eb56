"""Brings a database's schema up to date: schema/<dialect>/NNNN_<what>.sql, each applied once, in order."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from . import connect, sql
from .errors import SchemaError
from .sql import Connection, Dialect

logger = logging.getLogger(__name__)

_queries = sql.Queries("migrations")


def files(dialect: Dialect, folder: Path | None = None) -> list[Path]:
    """Return the schema files of *dialect* in the order in which they are applied."""
    return sorted(((folder or sql.shipped("schema")) / dialect).glob("[0-9][0-9][0-9][0-9]_*.sql"))


def migrate(conn: Connection, *, folder: Path | None = None) -> list[str]:
    """Apply the schema files that *conn*'s database does not have yet, and return their names.

    Each file is one transaction (a savepoint if the caller is in a transaction), taken under an advisory lock, so
    any number of processes may call this at once. *folder* stands in for the schema folder that is shipped.

    Raises SchemaError for a file that was changed after it was applied, and for a database that has files this
    version does not know. A file that fails leaves nothing behind, and the driver's error names it in a note.
    """
    known = files(sql.dialect(conn), folder)
    done = []
    if not known:
        raise SchemaError(f"no schema files in {folder or sql.shipped('schema')}")
    for path in known:
        with sql.transaction(conn):
            _queries.lock.execute(conn)
            _queries.create_table.execute(conn)
            if _check(dict(_queries.applied.fetchall(conn)), known).isdisjoint({path.name}):
                continue
            try:
                sql.script(conn, path.read_text(encoding="utf-8"))
            except Exception as error:
                error.add_note(f"while applying {path.name}; nothing of it was kept")
                raise
            _queries.record_applied.execute(conn, name=path.name, checksum=_checksum(path))
        logger.info("applied %s", path.name)
        done.append(path.name)
    connect.add_adapters(conn)
    return done


def pending(conn: Connection) -> list[str]:
    """Return the names of the schema files that *conn*'s database does not have yet. Raises SchemaError as migrate."""
    known = files(sql.dialect(conn))
    applied: dict[str, str] = dict(_queries.applied.fetchall(conn)) if _queries.exists.fetchval(conn, bool) else {}
    return sorted(_check(applied, known))


def _check(applied: dict[str, str], known: list[Path]) -> set[str]:
    """Return the names still to apply, after comparing *applied* with the files."""
    names = {path.name for path in known}
    if unknown := sorted(applied.keys() - names):
        raise SchemaError(f"the database has {', '.join(unknown)}, which this version lacks; upgrade kimera-sql")
    for path in known:
        if path.name in applied and applied[path.name] != _checksum(path):
            raise SchemaError(
                f"{path.name} was changed after it was applied; restore it, and put the change into a new file"
            )
    todo = names - applied.keys()
    if applied and (late := sorted(name for name in todo if name < max(applied))):
        raise SchemaError(f"{', '.join(late)} comes before {max(applied)}, which is applied; give it a higher number")
    return todo


def _checksum(path: Path) -> str:
    # A checkout on another system may have other line ends; that is no change.
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
