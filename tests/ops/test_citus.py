"""Distributed tables, on the Citus cluster whose coordinator KIMERA_TEST_CITUS_URL names, as a superuser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from commands import run
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from reference import seconds
from strategies import unit
from test_postgres import EMBEDDING, GEOID, METRIC, PORTAL, READS, STATE, STEP, WRITES, everything

from kimera_sql import add_adapters, embeddings, geoids, metrics, migrate, migrations, portals, transfer, transitions
from kimera_sql.errors import BackupError, InUse, SchemaError, UnsupportedByServer
from kimera_sql.ops import backup, citus, maintenance, monitoring
from kimera_sql.search import indexes, recall
from kimera_sql.sql.postgres import Connection

URL: Final = os.environ.get("KIMERA_TEST_CITUS_URL", "")
if not URL:
    pytest.skip("KIMERA_TEST_CITUS_URL names no coordinator of Citus", allow_module_level=True)

SHARDS: Final = 8
MANY: Final = 1500
IDS: Final = [UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128) for number in range(1, 9)]
MODULES: Final = (geoids, transitions, embeddings, portals, metrics)


@contextmanager
def database(*, nodes: bool) -> Iterator[str]:
    """Make a database on the coordinator, or one with Citus on all nodes, and give its conninfo there."""
    name = f"kimera_test_{uuid4().hex}"
    with psycopg.connect(URL, autocommit=True) as conn:
        found = conn.execute("SELECT nodename, nodeport FROM pg_dist_node ORDER BY groupid").fetchall()
    hosts = [{"host": host, "port": port} for host, port in (found if nodes else found[:1])]

    def everywhere(statement: str) -> None:
        for host in hosts:
            with psycopg.connect(make_conninfo(URL, **host), autocommit=True) as conn:
                conn.execute(composed.SQL(statement).format(composed.Identifier(name)))

    everywhere("CREATE DATABASE {}")
    try:
        # The shards here are small, and their plans are to be those of large ones.
        everywhere("ALTER DATABASE {} SET enable_seqscan = off")
        for host in hosts if nodes else ():
            with psycopg.connect(make_conninfo(URL, dbname=name, **host), autocommit=True) as conn:
                conn.execute("CREATE EXTENSION citus")
        with psycopg.connect(make_conninfo(URL, dbname=name, **hosts[0]), autocommit=True) as conn:
            if nodes:
                conn.execute("SELECT citus_set_coordinator_host(%s, %s)", list(hosts[0].values()))
                for host in hosts[1:]:
                    conn.execute("SELECT citus_add_node(%s, %s)", list(host.values()))
            migrate(conn)
        yield make_conninfo(URL, dbname=name, **hosts[0])
    finally:
        everywhere("DROP DATABASE {} WITH (FORCE)")


def connected(conninfo: str, *, autocommit: bool = False) -> Connection:
    conn = psycopg.connect(conninfo, autocommit=autocommit)
    add_adapters(conn)
    return conn


def fill(conninfo: str) -> None:
    """Insert rows of each entity, and states whose transitions lead from shard to shard."""
    with connected(conninfo) as conn:
        geoids.insert_many(
            conn,
            [
                replace(GEOID, id=id, state_vector=unit(place), timestamp=seconds(100 + place), entropy=place / 16)
                for place, id in enumerate([STATE, *IDS])
            ],
        )
        chain = [STATE, *IDS]
        transitions.insert_many(
            conn,
            [
                replace(STEP, id=UUID(int=place), source_id=source, target_id=target, timestamp=seconds(place))
                for place, (source, target) in enumerate(pairwise(chain))
            ],
        )
        embeddings.insert(conn, replace(EMBEDDING, id=STATE, timestamp=seconds(0)))
        portals.insert(conn, replace(PORTAL, creation_timestamp=seconds(0)))
        metrics.insert_many(
            conn, [replace(METRIC, metric_name=name, timestamp=seconds(0)) for name in ("load", "heat")]
        )


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """A database with a few rows, on the coordinator alone."""
    with database(nodes=False) as conninfo:
        fill(conninfo)
        yield conninfo


@pytest.fixture(scope="module")
def spread() -> Iterator[str]:
    """The same rows, distributed."""
    with database(nodes=True) as conninfo:
        fill(conninfo)
        with connected(conninfo, autocommit=True) as conn:
            citus.distribute(conn, shards=SHARDS)
        yield conninfo


@pytest.fixture(scope="module")
def indexed() -> Iterator[str]:
    """Distributed rows with vector indexes that were there before: hnsw on states, ivfflat on embeddings."""
    with database(nodes=True) as conninfo, connected(conninfo, autocommit=True) as conn:
        vectors = np.random.default_rng(5).standard_normal((MANY, 1024), dtype=np.float32)
        geoids.insert_many(conn, [replace(GEOID, id=None, state_vector=vector) for vector in vectors])
        embeddings.insert_many(conn, [replace(EMBEDDING, embedding=vector) for vector in vectors])
        indexes.build(conn, "geoid_states", m=8)
        indexes.build(conn, "semantic_embeddings", method="ivfflat", precision="full", lists=20)
        recall.tune(conn, "geoid_states", target=0.9)
        citus.distribute(conn, shards=SHARDS)
        yield conninfo


@pytest.fixture
def conn(spread: str) -> Iterator[Connection]:
    with connected(spread) as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def searched(indexed: str) -> Iterator[Connection]:
    with connected(indexed, autocommit=True) as conn:
        yield conn


def undone(conninfo: str, call: Callable[[Connection], object]) -> tuple[Any, list[int]]:
    """Return what *call* returns, and how many rows of each entity there are then, and roll it back."""
    with connected(conninfo) as conn:
        found = call(conn), [module.count(conn) for module in MODULES]
        conn.rollback()
        return found


def test_the_tables_are_distributed_with_their_rows(spread: str, plain: str) -> None:
    with connected(spread) as conn, connected(plain) as single:
        assert {one.table: (one.column, one.shards) for one in citus.placements(conn)} == {
            table: (column, SHARDS if column else 1) for table, column in citus.COLUMNS.items()
        }
        assert everything(conn) == everything(single)
        assert migrations.differences(conn) == []
        states, steps, *_ = citus.placements(conn)
        assert states.colocation == steps.colocation


@pytest.mark.parametrize("name", READS)
def test_reads_give_what_they_give_on_one_server(name: str, spread: str, plain: str) -> None:
    if name in ("geoids.explain", "embeddings.get_or_create"):
        pytest.skip("the one gives a plan, the other a time")
    (found, rows), (expected, as_many) = undone(spread, READS[name]), undone(plain, READS[name])
    if "unordered" in name:
        found, expected = (sorted(repr(row) for row in listed) for listed in (found, expected))
    assert repr(found) == repr(expected)
    assert rows == as_many


@pytest.mark.parametrize("name", WRITES)
def test_writes_do_what_they_do_on_one_server(name: str, spread: str, plain: str) -> None:
    found, rows = undone(spread, WRITES[name])
    expected, as_many = undone(plain, WRITES[name])
    assert (type(found), rows) == (type(expected), as_many)
    if not hasattr(found, "id") and name != "portals.mark_used":
        assert found == expected


def test_the_same_text_is_written_again(conn: Connection) -> None:
    first = embeddings.upsert(conn, replace(EMBEDDING, id=None, text_content="again"))
    assert embeddings.upsert(conn, replace(EMBEDDING, id=None, text_content="again")).id == first.id
    several = [replace(EMBEDDING, id=None, text_content=text) for text in ("other", "again", "third")]
    done = embeddings.upsert_many(conn, several)
    assert (done.inserted, done.updated) == (2, 1)


def test_paths_and_trajectories_lead_from_shard_to_shard(conn: Connection) -> None:
    steps = transitions.path(conn, STATE, IDS[-1])
    assert steps is not None
    assert [step.target_id for step in steps] == IDS
    assert transitions.path(conn, STATE, IDS[-1], max_steps=len(IDS) - 1) is None
    assert transitions.path(conn, IDS[-1], STATE) is None
    assert [step.target_id for step in transitions.trajectory(conn, STATE)] == IDS
    assert len(transitions.trajectory(conn, STATE, max_steps=3)) == 3


def test_states_are_kept_that_transitions_of_other_shards_lead_to(conn: Connection) -> None:
    with pytest.raises(InUse, match="2 transitions lead from or to the 1 states"):
        geoids.delete_where(conn, entropy=(0.2, 0.3))
    gone = geoids.delete_where(conn, entropy=(0.2, 0.3), transitions="delete")
    assert (gone.states, gone.transitions) == (1, 2)


def test_a_search_by_index_is_one_on_each_shard(searched: Connection) -> None:
    for module in (geoids, embeddings):
        found = module.explain(searched, unit(0), 10)
        assert found.used, str(found)
        assert f"on each of {SHARDS} shards" in found.reason
    states, texts = indexes.existing(searched)
    assert (states.method, texts.method) == ("hnsw", "ivfflat")
    assert states.shards == texts.shards == SHARDS
    assert abs(states.live - MANY) < MANY / 5
    # What had been tuned before was tuned again.
    assert {target for _, target in states.tuned} == {0.9}


def test_the_setting_of_a_search_reaches_the_workers(searched: Connection) -> None:
    few = recall.measure(searched, "geoid_states", k=10, ef_search=1)
    many = recall.measure(searched, "geoid_states", k=10, ef_search=400)
    assert few.recall < many.recall - 0.05
    assert many.recall > 0.98
    few = recall.measure(searched, "semantic_embeddings", k=10, probes=1)
    many = recall.measure(searched, "semantic_embeddings", k=10, probes=20)
    assert few.recall < many.recall - 0.05
    assert many.recall > 0.999


@pytest.mark.parametrize("precision", ["full", "half", "binary"])
def test_hits_come_in_the_exact_order(searched: Connection, precision: Any) -> None:
    with searched.transaction(force_rollback=True):
        indexes.drop(searched, "idx_geoid_vector_hnsw_half")
        indexes.build(searched, "geoid_states", precision=precision)
        hits = geoids.similar(searched, unit(9), 20, ef_search=1000, with_vectors=True)
        exact = geoids.similar(searched, unit(9), 20, exact=True, with_vectors=True)
    assert hits == sorted(hits, key=lambda hit: -hit.similarity)
    # By signs alone some of the nearest are no candidates.
    found = {hit.geoid.id for hit in hits} & {hit.geoid.id for hit in exact}
    assert len(found) >= (10 if precision == "binary" else 19)


def test_filters_are_estimated_over_all_shards(searched: Connection) -> None:
    assert geoids.explain(searched, unit(0), entropy=(0.6, None)).reason.startswith("exactly: some ")
    hits = geoids.similar(searched, unit(0), 10, tags_any=["a"])
    assert len(hits) == 10
    with searched.transaction(force_rollback=True):
        # Now Citus explains nothing: the coordinator has a copy of the reference table, which it has written to itself.
        portals.insert(searched, replace(PORTAL, id=None))
        assert geoids.similar(searched, unit(0), 10, tags_any=["a"]) == geoids.similar(
            searched, unit(0), 10, tags_any=["a"], exact=True
        )


def test_rows_are_copied_out_and_in(spread: str, plain: str) -> None:
    for source in (spread, plain):
        with database(nodes=source == plain) as target:
            if source == plain:
                with connected(target, autocommit=True) as conn:
                    citus.distribute(conn, shards=4)
            with connected(source, autocommit=True) as one, connected(target, autocommit=True) as other:
                transfer.copy(one, other)
                assert everything(other) == everything(one)


def test_the_way_back_leads_to_what_was_there(plain: str) -> None:
    with database(nodes=True) as conninfo, connected(conninfo, autocommit=True) as conn:
        fill(conninfo)
        embeddings.name_model(conn, "model one")
        indexes.build(conn, "geoid_states")
        before, elements = everything(conn), migrations.elements(conn)
        citus.distribute(conn, shards=4)
        assert citus.distribute(conn) == citus.placements(conn)
        assert embeddings.model(conn) == "model one"
        assert citus.undistribute(conn) == []
        assert citus.undistribute(conn) == []
        assert embeddings.model(conn) == "model one"
        assert everything(conn) == before
        # Citus makes the table anew, and checks every row at that.
        assert migrations.elements(conn) == [
            replace(one, definition=one.definition.removesuffix(" NOT VALID")) for one in elements
        ]
        assert [index.name for index in indexes.existing(conn)] == ["idx_geoid_vector_hnsw_half"]
        assert conn.execute("SELECT to_regproc('kimera_set_local')").fetchone() == (None,)


def test_what_stands_in_the_way_is_said_and_nothing_is_changed(plain: str) -> None:
    with database(nodes=True) as conninfo, connected(conninfo, autocommit=True) as conn:
        fill(conninfo)
        conn.execute("CREATE UNIQUE INDEX my_texts ON semantic_embeddings (source, text_content)")
        conn.execute("CREATE TABLE notes (state UUID CONSTRAINT my_notes REFERENCES geoid_states)")
        conn.execute(
            "CREATE TRIGGER my_trigger BEFORE UPDATE ON geoid_states FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        )
        with pytest.raises(SchemaError) as caught:
            citus.distribute(conn)
        assert str(caught.value).split("; ") == [
            "geoid_states has the trigger my_trigger",
            "the foreign key my_notes leads from notes to geoid_states",
            "the unique index my_texts of semantic_embeddings does not contain id",
        ]
        assert citus.placements(conn) == []
        conn.execute("DROP INDEX my_texts; DROP TABLE notes; DROP TRIGGER my_trigger ON geoid_states")
        citus.distribute(conn, shards=4)
        transitions.insert(conn, replace(STEP, target_id=uuid4()))
        with pytest.raises(SchemaError, match="1 transitions lead to a state that is not there"):
            citus.undistribute(conn)
        assert len(citus.placements(conn)) == len(citus.COLUMNS)


def test_reports_count_the_rows_and_bytes_of_all_shards(indexed: str) -> None:
    with connected(indexed, autocommit=True) as conn:
        use = {one.table: one for one in monitoring.tables(conn)}
        assert use["geoid_states"].live_rows == use["semantic_embeddings"].live_rows == MANY
        assert use["geoid_states"].analyzed_at is not None
        # A row with its vector fills a page.
        sizes = {one.table: one for one in monitoring.sizes(conn)}
        assert sizes["geoid_states"].heap_bytes >= MANY * 8192
        assert [one.rows for one in maintenance.vacuum(conn) if one.table in use][::2] == [MANY, MANY, 0]
        health = monitoring.vectors(conn)
        assert [one.index for one in health] == ["idx_geoid_vector_hnsw_half", "idx_embedding_vector"]
        assert all(one.size_bytes > SHARDS * 8192 for one in health)
        shards = citus.shards(conn)
        assert {one.unusable_indexes for one in shards} == {0}
        assert len([one for one in shards if one.table == "geoid_states"]) == SHARDS


def test_what_cannot_be_done_with_distributed_tables_is_refused(spread: str, tmp_path: Path) -> None:
    with connected(spread, autocommit=True) as conn:
        with pytest.raises(UnsupportedByServer, match="a renewal needs a trigger"):
            embeddings.renew(conn, lambda texts: [unit(1)] * len(texts), model="model two")
        with pytest.raises(BackupError, match="pg_dump reads each shard as it is at another moment"):
            backup.make_dump(conn, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_the_commands() -> None:
    with database(nodes=True) as conninfo:

        def said(*arguments: str) -> list[str]:
            done = run("scale", *arguments, DATABASE_URL=conninfo)
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout.splitlines()

        planned = said("citus", "--dry-run", "--shards", "4")
        assert planned[: len(citus.LOSSES)] == [f"-- not kept: {loss}" for loss in citus.LOSSES]
        assert planned[len(citus.LOSSES)] == "SET LOCAL kimera.shards = 4;"
        with connected(conninfo) as conn:
            assert citus.placements(conn) == []
        assert said("citus", "--shards", "4")[0] == "geoid_states: 4 shards by id"
        assert said("citus", "--dry-run")[-1] == "-- there is nothing to do"
        assert sum(line.startswith("geoid_states ") for line in said("status")) == 2
        assert "SELECT undistribute_table('geoid_states');" in said("undistribute", "--dry-run")
        assert said("undistribute") == ["the tables are on this server alone"]


def test_every_node_is_listed_with_its_versions(conn: Connection) -> None:
    nodes = citus.nodes(conn)
    assert [node.coordinator for node in nodes] == [True] + [False] * (len(nodes) - 1)
    assert {(node.active, node.answered) for node in nodes} == {(True, True)}
    assert len({(node.citus, node.vector) for node in nodes}) == 1
