"""The facts that findings are decided from, and how they are gathered."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from ... import checks, embeddings, migrations, schema, sql
from ...drift import Difference
from ...embeddings import Renewal
from ...errors import BackupError, InvalidValue, SchemaError
from ...schema import Misplaced
from ...search import indexes
from ...sql import Connection
from .. import backup, monitoring, roles, tuning
from ..monitoring import (
    Archiver,
    Bloat,
    Blocked,
    Database,
    IndexUse,
    Replica,
    SampledSearches,
    ServerState,
    Slot,
    Standby,
    TableUse,
    Transaction,
    Unavailable,
    VectorHealth,
    Wraparound,
)
from ..shards import Shard, shards

_queries = sql.Queries("doctor")

T = TypeVar("T")

_SETTINGS: Final = (
    "archive_command",
    "archive_library",
    "autovacuum",
    "data_checksums",
    "fsync",
    "full_page_writes",
    "reserved_connections",
    "superuser_reserved_connections",
    "synchronous_standby_names",
    "track_counts",
)


@dataclass(frozen=True, slots=True)
class Session:
    """The role that asks. role_limit, database_limit: how many connections each may have, -1 for any number."""

    role: str
    superuser: bool
    role_limit: int
    database_limit: int


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension: its version in this database, and the version of the server's files."""

    name: str
    installed: str
    available: str | None


@dataclass(frozen=True, slots=True)
class Transport:
    """How the connection is made. host: a name, an address or a socket's folder. password: the server asked for one."""

    host: str
    password: bool
    tls: bool

    @property
    def local(self) -> bool:
        """Whether it stays on this machine."""
        if self.host in ("", "localhost") or self.host.startswith(("/", "@")):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What findings are decided from. now: when the facts were gathered.

    misplaced: why this session does not find the tables; lost: other logins that would not. has_record: kimera_sql made
    the tables, or has adopted them. pending: the schema files that the database does not have yet; schema_fault: why
    that cannot be said. drift: how the tables differ from what they make. settings: the server's, by name. checked:
    settings beside the recommended ones; checked_fault: why they could not be compared. compiles: whether the server
    compiles costly plans (JIT). building: tables that an index is being built on. pool_connections: how many the pools
    of all processes can open together. half_made: databases of restores that were killed. backups: this database's,
    None unless a folder was given; backups_fault: why it could not be read. shards: of the tables that Citus keeps.
    unavailable: the reports that could not be had, and why.
    """

    now: datetime
    server: ServerState
    server_version: int
    session: Session
    transport: Transport
    sees_all: bool = True
    has_schema: bool = True
    has_record: bool = True
    pending: tuple[str, ...] = ()
    schema_fault: str | None = None
    drift: tuple[Difference, ...] = ()
    misplaced: Misplaced | None = None
    lost: tuple[roles.LostLogin, ...] = ()
    compiles: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    checked: tuple[tuning.Check, ...] = ()
    checked_fault: str | None = None
    extensions: tuple[Extension, ...] = ()
    databases: tuple[Database, ...] = ()
    tables: tuple[TableUse, ...] = ()
    indexes: tuple[IndexUse, ...] = ()
    vectors: tuple[VectorHealth, ...] = ()
    sampled: tuple[SampledSearches, ...] = ()
    renewals: tuple[Renewal, ...] = ()
    building: tuple[str, ...] = ()
    bloat: tuple[Bloat, ...] = ()
    locks: tuple[Blocked, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    archiver: tuple[Archiver, ...] = ()
    replicas: tuple[Replica, ...] = ()
    standby: tuple[Standby, ...] = ()
    slots: tuple[Slot, ...] = ()
    wraparound: tuple[Wraparound, ...] = ()
    pool_connections: int = 0
    half_made: tuple[str, ...] = ()
    backups: tuple[backup.Backup, ...] | None = None
    backups_fault: str | None = None
    shards: tuple[Shard, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)


def gather(
    conn: Connection,
    *,
    backups: Path | None = None,
    pool_connections: int = tuning.CONNECTIONS,
    processes: int = 1,
    memory: int | None = None,
) -> Facts:
    """Return the facts that diagnose decides from; see examine."""
    in_all = checks.limit(pool_connections, "pool_connections") * checks.limit(processes, "processes")
    if memory is not None:
        # Memory that no machine has is a mistake of the caller's, not a finding.
        tuning.recommend(memory)
    conn = sql.require_postgres(conn, "SQLite keeps no statistics; monitoring needs PostgreSQL")
    unavailable: dict[str, str] = {}

    def rows(name: str, report: Callable[[Connection], Sequence[T]]) -> tuple[T, ...]:
        found = monitoring.attempt(conn, report)
        if isinstance(found, Unavailable):
            unavailable[name] = found.reason
            return ()
        return tuple(found)

    schema_fault = None
    try:
        pending = rows("migrations", migrations.pending)
    except SchemaError as error:
        pending, schema_fault = (), str(error)
    databases = rows("databases", monitoring.databases)
    tables = rows("tables", monitoring.tables)
    index_use = rows("indexes", monitoring.index_use)
    vectors = rows("vectors", monitoring.vectors)
    sampled = rows("sampled", monitoring.sampled)
    renewals = rows("renewals", lambda conn: [one for one in [embeddings.renewal(conn)] if one is not None])
    bloat = rows("bloat", monitoring.bloat)
    # Nothing is decided from the statements, but that there are none is worth knowing.
    rows("statements", monitoring.statements)
    locks = rows("locks", monitoring.blocked)
    transactions = rows("transactions", monitoring.transactions)
    archiver = rows("archiver", lambda conn: [monitoring.archiver(conn)])
    replicas = rows("replicas", monitoring.replicas)
    standby = rows("standby", monitoring.standby)
    slots = rows("slots", monitoring.slots)
    wraparound = rows("wraparound", monitoring.wraparound)
    checked, checked_fault = _checked(conn, memory, in_all)
    saved, backups_fault = _backups(conn, backups)
    return Facts(
        now=datetime.now(UTC),
        server=monitoring.server(conn),
        server_version=conn.info.server_version,
        session=_queries.session.fetchall(conn, Session)[0],
        transport=Transport(
            host=conn.info.hostaddr or conn.info.host,
            password=conn.pgconn.used_password,
            tls=bool(conn.pgconn.ssl_in_use),
        ),
        sees_all=monitoring.visibility(conn).sees_all,
        compiles=_queries.compiles.fetchval(conn, bool) or False,
        has_schema=_queries.has_schema.fetchval(conn, bool) or False,
        has_record=len(pending) < len(schema.files("postgres")),
        pending=pending,
        schema_fault=schema_fault,
        drift=rows("schema", migrations.differences),
        misplaced=migrations.misplaced(conn),
        lost=tuple(roles.lost(conn)),
        settings=dict(_queries.settings.fetchall(conn, names=list(_SETTINGS))),
        checked=checked,
        checked_fault=checked_fault,
        extensions=tuple(_queries.extensions.fetchall(conn, Extension)),
        databases=databases,
        tables=tables,
        indexes=index_use,
        vectors=vectors,
        sampled=sampled,
        renewals=renewals,
        building=tuple(one.table for one in indexes.building(conn)),
        bloat=bloat,
        locks=locks,
        transactions=transactions,
        archiver=archiver,
        replicas=replicas,
        standby=standby,
        slots=slots,
        wraparound=wraparound,
        pool_connections=in_all,
        half_made=tuple(backup.left_databases(conn)),
        backups=saved,
        backups_fault=backups_fault,
        shards=rows("shards", shards),
        unavailable=unavailable,
    )


def _checked(conn: Connection, memory: int | None, connections: int) -> tuple[tuple[tuning.Check, ...], str | None]:
    """Return the settings beside the recommended ones, or why they could not be compared."""
    try:
        return tuple(tuning.check(conn, memory=memory, connections=connections)), None
    except InvalidValue as error:
        return (), str(error)


def _backups(conn: Connection, folder: Path | None) -> tuple[tuple[backup.Backup, ...] | None, str | None]:
    """Return the backups in *folder* that have this database, or why it could not be read."""
    if folder is None:
        return None, None
    try:
        return tuple(backup.list_backups_of(conn, folder)), None
    except BackupError as error:
        return None, str(error)
