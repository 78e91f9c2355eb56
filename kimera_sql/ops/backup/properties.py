"""What a database has besides its contents: owner, limits, settings, grants.

A dump has it too, but pg_restore restores it with --create alone, under the name that the database had.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql as composed

from ... import sql

_queries = sql.Queries("backup")

# Settings that are lists of names, each a value of its own (pg_dump's variable_is_guc_list_quote)
_LISTS: Final = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)

_PRIVILEGES: Final = {
    "CONNECT": composed.SQL("CONNECT"),
    "CREATE": composed.SQL("CREATE"),
    "TEMPORARY": composed.SQL("TEMPORARY"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What ALTER DATABASE ... SET gave a database, or ALTER ROLE ... IN DATABASE ... SET a role in it."""

    role: str | None
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A privilege on a database. grantee: None for PUBLIC. grantable: given WITH GRANT OPTION."""

    grantee: str | None
    privilege: str
    grantable: bool


@dataclass(frozen=True, slots=True)
class Properties:
    """What a database has besides its contents. tablespace: None for the one of new databases.

    grants: None where nobody has granted or revoked anything, so that PostgreSQL's defaults hold.
    """

    owner: str
    connection_limit: int
    is_template: bool
    allows_connections: bool
    tablespace: str | None
    comment: str | None
    settings: tuple[Setting, ...]
    grants: tuple[Grant, ...] | None


def read_properties(conn: psycopg.Connection[Any], name: str) -> Properties | None:
    """Return the properties of the database *name*, None if the server does not have it."""
    row = _queries.database.fetchone(conn, name=name)
    if row is None:
        return None
    oid, has_grants, owner, connection_limit, is_template, allows_connections, tablespace, comment = row
    return Properties(
        owner=owner,
        connection_limit=connection_limit,
        is_template=is_template,
        allows_connections=allows_connections,
        tablespace=tablespace,
        comment=comment,
        settings=tuple(_queries.database_settings.fetchall(conn, Setting, oid=oid)),
        grants=tuple(_queries.database_grants.fetchall(conn, Grant, oid=oid)) if has_grants else None,
    )


def give_properties(conn: psycopg.Connection[Any], name: str, properties: Properties) -> None:
    """Give the database *name*, a new one, *properties* but for the tablespace, in the transaction of *conn*."""
    for statement in _statements(composed.Identifier(name), properties):
        conn.execute(statement)


def _statements(database: composed.Identifier, properties: Properties) -> Iterable[composed.Composed]:
    owner = composed.Identifier(properties.owner)
    yield composed.SQL("ALTER DATABASE {} OWNER TO {}").format(database, owner)
    yield composed.SQL("COMMENT ON DATABASE {} IS {}").format(database, properties.comment)
    for one in properties.settings:
        yield composed.SQL("ALTER {}DATABASE {} SET {} TO {}").format(
            composed.SQL("ROLE {} IN ").format(composed.Identifier(one.role)) if one.role else composed.SQL(""),
            database,
            composed.SQL(".").join(map(composed.Identifier, one.name.split("."))),
            composed.SQL(", ").join(map(composed.Literal, _split(one.value) if one.name in _LISTS else [one.value])),
        )
    if properties.grants is not None:
        yield composed.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(database, owner)
    for grant in properties.grants or ():
        yield composed.SQL("GRANT {} ON DATABASE {} TO {} {}").format(
            _PRIVILEGES[grant.privilege],
            database,
            composed.Identifier(grant.grantee) if grant.grantee else composed.SQL("PUBLIC"),
            composed.SQL("WITH GRANT OPTION" if grant.grantable else ""),
        )
    yield composed.SQL("ALTER DATABASE {} CONNECTION LIMIT {} IS_TEMPLATE {} ALLOW_CONNECTIONS {}").format(
        database, properties.connection_limit, properties.is_template, properties.allows_connections
    )


def _split(names: str) -> list[str]:
    """Return the names of a list as PostgreSQL writes it: in double quotes where it needs them."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^,\s]+)', names)
    return [quoted.replace('""', '"') or plain for quoted, plain in found] or [""]
