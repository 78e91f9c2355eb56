"""Spreading the tables over the nodes of a Citus cluster, and bringing them back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg

from .. import checks, migrations, sql
from ..errors import KimeraError, SchemaError, UnsupportedByServer
from ..progress import Bar
from ..search import VectorIndex, indexes, recall
from ..sql import Connection
from ..sql.files import literal
from ..tables import NAMES, VECTOR_TABLES
from . import maintenance
from .shards import Shard as Shard
from .shards import distributed
from .shards import shards as shards

_queries = sql.Queries("citus")

COLUMNS: Final[dict[str, str | None]] = {
    "geoid_states": "id",
    "cognitive_transitions": "source_id",
    "semantic_embeddings": "id",
    "portal_configurations": None,
    "system_metrics": "metric_name",
}
"""The column that each table is distributed by, as schema/citus.sql does it; None for a reference table."""

LOSSES: Final = (
    "the foreign key of cognitive_transitions.target_id: a transition can lead to a state that does not exist, or is "
    "deleted later",
    "the primary key of cognitive_transitions on id alone: two transitions with different sources can have the same id",
    "the primary key of system_metrics on id alone: two measurements of different metrics can have the same id",
    "embeddings.renew, which needs a trigger: undistribute, renew, and distribute again",
)
"""What a distributed database does without."""

SHARDS_PER_NODE: Final = 4
"""Shards of a table on each node unless told otherwise: as many as a session asks at once."""

_MOST_SHARDS: Final = 64_000
"""Citus' limit of a table."""

_CITUS: Final = "12.0"
_PGVECTOR: Final = "0.8"
"""The oldest versions that searches over shards work with: they need iterative scans."""

_FOREIGN_KEYS: Final = ("cognitive_transitions_source_id_fkey", "cognitive_transitions_target_id_fkey")

_STATEMENT: Final = re.compile(r"\S.*?;$(?=\n\n|\n*\Z)", re.DOTALL | re.MULTILINE)
"""A statement of the two files: an empty line follows on its semicolon."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. address: as the coordinator knows it. answered: whether it could be asked.

    citus, vector: the extensions' versions in this database there, None where it has none.
    """

    address: str
    coordinator: bool
    active: bool
    holds_shards: bool
    answered: bool
    citus: str | None
    vector: str | None


@dataclass(frozen=True, slots=True)
class Placement:
    """How Citus keeps a table. column: what it is distributed by, None for a reference table.

    colocation: tables with the same number have their shards side by side.
    """

    table: str
    column: str | None
    shards: int
    colocation: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What distributing a database, or bringing it back, takes.

    script: the statements to run in one transaction, none where all is done already. obstacles: what has to be put
    right by hand first.
    """

    script: str
    obstacles: tuple[str, ...]


def placements(conn: Connection) -> list[Placement]:
    """Return how Citus keeps the tables: none of them where they are not distributed, or there is no Citus."""
    if not sql.is_postgres(conn) or not distributed(conn):
        return []
    return _queries.placements.fetchall(conn, Placement, tables=list(NAMES))


def nodes(conn: Connection) -> list[Node]:
    """Return the nodes of the cluster. Raises UnsupportedByServer where the database has no Citus."""
    return _queries.nodes.fetchall(_require_citus(conn), Node)


def plan(conn: Connection, *, shards: int | None = None) -> Plan:
    """Return what distribute would do with *conn*'s database, which is left as it is.

    Raises InvalidValue for a number of shards that can't be, UnsupportedByServer on SQLite and without Citus, and
    SchemaError where the tables are missing.
    """
    server = _require_citus(conn)
    if shards is not None:
        checks.integer("shards", shards, least=1, most=_MOST_SHARDS)
    with sql.transaction(server):
        obstacles = list(_unsuited(server))
        kept = placements(server)
        if {one.table: one.column for one in kept} == COLUMNS and _queries.is_prepared.fetchval(server, bool):
            return Plan("", tuple(obstacles))
        if kept:
            names = ", ".join(one.table for one in kept)
            obstacles.append(f"{names}: already distributed, and not as kimera_sql does it; undistribute_table() them")
        cluster = nodes(server)
        obstacles += _weaknesses(cluster)
        holding = sum(one.active and one.holds_shards for one in cluster)
        wanted = shards or max(holding, 1) * SHARDS_PER_NODE
        obstacles += [str(one) for one in migrations.differences(server)]
        obstacles += [
            what
            for (what,) in _queries.in_the_way.fetchall(
                server, tables=list(COLUMNS), columns=list(COLUMNS.values()), foreign_keys=list(_FOREIGN_KEYS)
            )
        ]
        return Plan(f"SET LOCAL kimera.shards = {wanted};\n\n{_file('citus.sql')}", tuple(obstacles))


def plan_undo(conn: Connection) -> Plan:
    """Return what undistribute would do with *conn*'s database, which is left as it is. It raises as plan does."""
    server = _require_citus(conn)
    with sql.transaction(server):
        obstacles = list(_unsuited(server))
        if not distributed(server):
            return Plan("", tuple(obstacles))
        counts = {
            "transitions lead to a state that is not there": _queries.lost_targets,
            "ids of transitions are there more than once": _queries.repeated_transitions,
            "ids of measurements are there more than once": _queries.repeated_metrics,
        }
        for what, query in counts.items():
            with sql.without_timeouts(server):
                rows = query.fetchval(server, int)
            if rows:
                obstacles.append(f"{rows:,} {what}, which the tables' own keys do not allow: delete or change them")
        return Plan(_file("citus_undo.sql"), tuple(obstacles))


def distribute(
    conn: Connection, *, shards: int | None = None, lock_timeout: timedelta = maintenance.LOCK_TIMEOUT
) -> list[Placement]:
    """Distribute the tables over the nodes of the cluster with their rows, and return how Citus keeps them.

    *conn* must be to the coordinator, in autocommit, outside a transaction, and its role must own the tables. *shards*
    is how many each table gets, by default 4 for each node that holds shards. A search asks every shard, so that few
    are faster. What gets lost is in LOSSES.

    All is one transaction, in which the tables are locked against everybody. Vector indexes are built anew on each
    shard, then tables are analyzed, and what had been tuned is tuned again. Where the tables are distributed already,
    nothing is done. Raises SchemaError, with nothing changed, where something must be put right by hand first;
    MaintenanceError where a lock is not granted within *lock_timeout*; and as plan does. psycopg's errors pass through,
    with nothing changed.
    """
    server = _ready(conn)
    return _carry_out(server, plan(server, shards=shards), lock_timeout)


def undistribute(conn: Connection, *, lock_timeout: timedelta = maintenance.LOCK_TIMEOUT) -> list[Placement]:
    """Bring the tables back to the coordinator with their rows, and make them as they were before distribute.

    It needs, does and raises what distribute does. Where no table is distributed, nothing is done.
    """
    server = _ready(conn)
    return _carry_out(server, plan_undo(server), lock_timeout)


def _ready(conn: Connection) -> psycopg.Connection[Any]:
    _require_citus(conn)
    return maintenance.require_autocommit(conn)


def _require_citus(conn: Connection) -> psycopg.Connection[Any]:
    server = sql.require_postgres(conn, "SQLite has no nodes to distribute tables over")
    if _queries.version.fetchval(server, str) is None:
        raise UnsupportedByServer(
            f"the database {server.info.dbname} has no Citus; on each node put it into shared_preload_libraries and "
            "CREATE EXTENSION citus, then add the workers on the coordinator with citus_add_node()"
        )
    return server


def _unsuited(conn: psycopg.Connection[Any]) -> Iterator[str]:
    """Yield what keeps this role on this node from changing the tables at all."""
    foreign = [one.table for one in maintenance.rights(conn) if not one.owned]
    if foreign:
        yield f"role {conn.info.user} does not own {', '.join(foreign)}; run this as their owner"
    if not _queries.is_coordinator.fetchval(conn, bool):
        yield "this node is not the coordinator; connect to that"


def _weaknesses(cluster: Sequence[Node]) -> Iterator[str]:
    if not any(one.active and one.holds_shards for one in cluster):
        yield "no node holds shards; add the workers on the coordinator with citus_add_node()"
    for one in cluster:
        if not one.active or not one.answered:
            yield f"node {one.address} is not active, or does not answer"
            continue
        for name, found, least in (("citus", one.citus, _CITUS), ("vector", one.vector, _PGVECTOR)):
            if found is None or sql.version(found) < sql.version(least):
                yield f"node {one.address}: {name} is {found or 'missing'}, and has to be {least} or later"
    for name, versions in (("citus", {one.citus for one in cluster}), ("vector", {one.vector for one in cluster})):
        if len(known := sorted(version for version in versions if version)) > 1:
            yield f"nodes have {name} {' and '.join(known)}; give all the same"


def _file(name: str) -> str:
    return (sql.shipped("schema") / name).read_text(encoding="utf-8")


def _carry_out(server: psycopg.Connection[Any], found: Plan, lock_timeout: timedelta) -> list[Placement]:
    if found.obstacles:
        raise SchemaError("; ".join(found.obstacles))
    if not found.script:
        return placements(server)
    built = [index for index in indexes.existing(server) if index.usable and _has_rows(server, index)]
    with sql.transaction(server), sql.without_timeouts(server):
        maintenance.lock(server, list(NAMES), lock_timeout)
        if distributed(server):
            # Bringing them back drops a function, which Citus refuses after anything that it did on several shards at
            # once.
            _queries.one_by_one.execute(server)
        with _rebuilding(server, built), Bar() as bar:
            steps = _STATEMENT.findall(found.script)
            for number, statement in enumerate(steps):
                bar.draw("moving tables", number, len(steps))
                server.execute(literal(statement))
    try:
        maintenance.analyze(server, lock_timeout=lock_timeout)
        for index in built:
            if targets := sorted({target for _, target in index.tuned}):
                recall.tune(server, index.table, target=targets)
    except (KimeraError, psycopg.Error) as error:
        error.add_note("the tables are moved; this came after")
        raise
    return placements(server)


@contextmanager
def _rebuilding(conn: psycopg.Connection[Any], built: Sequence[VectorIndex]) -> Iterator[None]:
    """Drop the vector indexes *built*, and build them anew after the block.

    Moved with its table, an index is made before there are rows: an ivfflat one finds nothing to be trained on then.
    """
    for index in built:
        indexes.drop(conn, index.name)
    yield
    for index in built:
        indexes.build(
            conn,
            index.table,
            method=index.method,
            precision=index.precision,
            lists=index.lists,
            m=index.m,
            ef_construction=index.ef_construction,
        )


def _has_rows(conn: psycopg.Connection[Any], index: VectorIndex) -> bool:
    with sql.without_timeouts(conn):
        return bool(sql.Queries(VECTOR_TABLES[index.table].entity).count_all.fetchval(conn, int))
