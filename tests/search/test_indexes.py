"""Building the vector indexes, and what searches do with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_connections import BOTH_TWINS, cancelled_soon, rolled_back, to_own_database
from fix_servers import Server
from fix_twins import asynchronous
from psycopg import sql as composed
from reference import assert_nearest, cosine
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, sql
from kimera_sql.errors import InvalidValue, NotFound, UnsupportedByServer
from kimera_sql.ops import maintenance
from kimera_sql.search import Method, Precision, indexes, kinds, recall
from kimera_sql.sql.postgres import Connection

VECTORS = [unit(seed) for seed in range(60)]
INDEXES = {"geoid_states": "idx_geoid_vector", "semantic_embeddings": "idx_embedding_vector"}
ENTITIES = {"geoid_states": "geoids", "semantic_embeddings": "embeddings"}
COLUMNS = {"geoid_states": "state_vector", "semantic_embeddings": "embedding"}
SEARCHES: dict[str, Callable[..., list[Any]]] = {
    "geoid_states": geoids.similar,
    "semantic_embeddings": embeddings.similar,
}


@pytest.fixture(params=BOTH_TWINS)
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        yield conn


@pytest.fixture(params=INDEXES)
def table(request: pytest.FixtureRequest) -> str:
    table: str = request.param
    return table


def fill(conn: Connection, count: int = len(VECTORS)) -> None:
    """Insert rows of *count* vectors into both tables, every tenth of them tagged or from a source."""
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(
                state_vector=vector,
                entropy=0,
                coherence_factor=0,
                energy_level=0,
                tags=["tenth"] if number % 10 == 0 else [],
            )
            for number, vector in enumerate(VECTORS[:count])
        ],
    )
    embeddings.insert_many(
        conn,
        [
            embeddings.NewEmbedding(
                text_content=str(number), embedding=vector, source="tenth" if number % 10 == 0 else None
            )
            for number, vector in enumerate(VECTORS[:count])
        ],
    )


SPECIFIED: dict[str, Any] = {"method": "ivfflat", "precision": "full"}
KINDS = [(method, precision) for method in ("hnsw", "ivfflat") for precision in ("full", "half", "binary")]


def built(conn: Connection, table: str) -> None:
    """Fill the tables, build the specification's index on *table*, and have the planner prefer it."""
    fill(conn)
    indexes.build(conn, table, **SPECIFIED)
    conn.execute("SET LOCAL enable_seqscan = off")


def run(conn: Connection, table: str, name: str, k: int, *, explain: bool = False) -> list[tuple[Any, ...]]:
    """Run a query of *table*'s entity as it stands in its file, without filters."""
    statement = sql.statements("postgres", ENTITIES[table])[name]
    given = {"vector": VECTORS[0], "with_vectors": False, "k": k, "candidates": k}
    text = f"EXPLAIN {statement.text}" if explain else statement.text
    parameters = {**dict.fromkeys(statement.parameters), **given}
    return psycopg.Cursor(conn).execute(text.encode(), parameters).fetchall()


def modern(conn: Connection) -> bool:
    """Whether the server's pgvector knows half and binary precision."""
    row = conn.execute("SELECT to_regtype('halfvec') IS NOT NULL").fetchone()
    return bool(row and row[0])


def show(conn: Connection, name: str) -> str:
    row = conn.execute(f"SHOW {name}".encode()).fetchone()
    assert row
    return str(row[0])


def invalid(conn: Connection) -> list[str]:
    rows = conn.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()
    return [name for (name,) in rows]


@pytest.fixture
def large(database: str) -> Iterator[Connection]:
    """An autocommit connection to a database whose states take a while to index."""
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill_large(conn)
        yield conn


@pytest.fixture(params=BOTH_TWINS)
def autocommit(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Iterator[Any]:
    """An autocommit connection to a database of the test's own."""
    with to_own_database(request.param, start, autocommit=True) as conn:
        yield conn


def fill_large(conn: Connection) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 1024)).astype(np.float32)
    geoids.insert_many(
        conn,
        [geoids.NewGeoid(state_vector=vector, entropy=0, coherence_factor=0, energy_level=0) for vector in vectors],
    )


@contextmanager
def while_it_builds(
    database: str, work: Callable[[Connection], object], connect: Callable[[str], Any] = psycopg.connect
) -> Iterator[tuple[Connection, Connection]]:
    """Run *work* on a connection of its own, and the block once it builds: with a watching connection and its own."""
    with (
        psycopg.connect(database, autocommit=True) as watching,
        connect(database) as builder,
        ThreadPoolExecutor(1) as executor,
    ):
        add_adapters(watching)
        builder.autocommit = True
        building = executor.submit(work, builder)
        while not any(one.phase.startswith("building index") for one in indexes.building(watching)):
            assert not building.done(), building.result()
            time.sleep(0.005)
        yield watching, builder
        with pytest.raises(psycopg.OperationalError):
            building.result()


def similarities(hits: list[Any]) -> list[float]:
    return [hit.similarity for hit in hits]


def test_an_empty_table_is_refused(conn: Connection, table: str) -> None:
    with pytest.raises(InvalidValue, match=f"^table: {table} is empty; insert rows first"):
        indexes.build(conn, table)
    fill(conn, 1)
    indexes.build(conn, table)


@pytest.mark.parametrize("table", ["portal_configurations", "GEOID_STATES", "geoid_states; SELECT 1", "", None, 5])
def test_another_table_is_refused(conn: Connection, table: Any) -> None:
    fill(conn, 1)
    with pytest.raises(InvalidValue, match=r"^table: expected one of geoid_states, semantic_embeddings, got "):
        indexes.build(conn, table)
    assert geoids.count(conn) == 1


def test_ivfflat_in_full_precision_is_the_index_of_the_specification(conn: Connection, table: str) -> None:
    fill(conn)
    indexes.build(conn, table, **SPECIFIED)
    rows = conn.execute("SELECT tablename, indexname, indexdef FROM pg_indexes WHERE indexdef LIKE '%ivfflat%'")
    ((on, name, definition),) = rows.fetchall()
    assert (on, name) == (table, INDEXES[table])
    assert definition.endswith(f"USING ivfflat ({COLUMNS[table]} vector_cosine_ops) WITH (lists='100')")


def test_an_index_that_exists_is_the_drivers_error(conn: Connection, table: str) -> None:
    fill(conn)
    name = indexes.build(conn, table).name
    with pytest.raises(psycopg.errors.DuplicateTable, match=name):
        indexes.build(conn, table)


def test_build_is_left_to_the_callers_commit(conn: Connection, table: str) -> None:
    built(conn, table)
    conn.rollback()
    assert conn.execute("SELECT FROM pg_indexes WHERE indexname = %s", [INDEXES[table]]).rowcount == 0


def test_similar_full_uses_the_index_and_similar_exact_does_not(conn: Connection, table: str) -> None:
    built(conn, table)
    assert INDEXES[table] in str(run(conn, table, "similar_full", 5, explain=True))
    assert INDEXES[table] not in str(run(conn, table, "similar_exact", 5, explain=True))


@pytest.mark.parametrize("k", [1, 10, 50, 60, 100])
def test_similar_returns_k_rows_though_the_index_gives_fewer(conn: Connection, table: str, k: int) -> None:
    built(conn, table)
    assert len(run(conn, table, "similar_full", 60)) < 60
    assert len(SEARCHES[table](conn, VECTORS[0], k)) == min(k, 60)


def test_similar_returns_k_rows_though_filters_leave_few(conn: Connection, table: str) -> None:
    built(conn, table)
    filters: dict[str, Any] = {"tags_all": ["tenth"]} if table == "geoid_states" else {"source": "tenth"}
    hits = SEARCHES[table](conn, VECTORS[5], 6, **filters)
    expected = sorted((cosine(VECTORS[5], vector) for vector in VECTORS[::10]), reverse=True)
    np.testing.assert_allclose(similarities(hits), expected, rtol=0, atol=1e-6)


def test_exact_finds_the_nearest_whatever_the_index_does(conn: Connection, table: str) -> None:
    built(conn, table)
    query = unit(1000)
    hits = SEARCHES[table](conn, query, 10, exact=True)
    expected = sorted((cosine(query, vector) for vector in VECTORS), reverse=True)[:10]
    np.testing.assert_allclose(similarities(hits), expected, rtol=0, atol=1e-6)


def test_similar_by_the_index_gives_exact_similarities_the_most_similar_first(conn: Connection, table: str) -> None:
    built(conn, table)
    hits = SEARCHES[table](conn, VECTORS[0], 3, with_vectors=True)
    assert similarities(hits) == sorted(similarities(hits), reverse=True)
    expected = [cosine(VECTORS[0], hit.vector) for hit in hits]
    np.testing.assert_allclose(similarities(hits), expected, rtol=0, atol=1e-6)
    assert similarities(hits)[0] == pytest.approx(1, abs=1e-6)


def test_similar_to_leaves_itself_out_by_the_index_too(conn: Connection) -> None:
    built(conn, "geoid_states")
    first = next(geoids.stream(conn))
    hits = geoids.similar_to(conn, first.id, 59)
    expected = [(row.id, cosine(row.state_vector, first.state_vector)) for row in geoids.stream(conn)]
    assert_nearest(
        [(hit.geoid.id, hit.similarity) for hit in hits], [pair for pair in expected if pair[0] != first.id], 59
    )


def test_rows_that_come_after_the_index_are_found(conn: Connection) -> None:
    built(conn, "geoid_states")
    query = unit(1000)
    stored = geoids.insert(conn, geoids.NewGeoid(state_vector=query, entropy=0, coherence_factor=0, energy_level=0))
    assert [hit.geoid.id for hit in geoids.similar(conn, query, 1)] == [stored.id]


@pytest.mark.parametrize(("method", "precision"), KINDS)
def test_a_built_index_tells_what_it_is_made_of(
    conn: Connection, table: str, method: Method, precision: Precision
) -> None:
    fill(conn)
    if precision != "full" and not modern(conn):
        with pytest.raises(UnsupportedByServer, match=rf"^indexes in {precision} precision need pgvector 0\.7"):
            indexes.build(conn, table, method=method, precision=precision)
        return
    index = indexes.build(conn, table, method=method, precision=precision)
    specified = (method, precision) == ("ivfflat", "full")
    assert index.name == INDEXES[table] + ("" if specified else f"_{method}_{precision}")
    assert (index.table, index.method, index.precision, index.usable) == (table, method, precision, True)
    expected = (100, None, None) if method == "ivfflat" else (None, 16, 64)
    assert (index.lists, index.m, index.ef_construction) == expected
    assert (index.rows, index.rows_at_build, index.scans, index.tuned) == (60, 60, 0, {})
    assert index.size == index.size_at_build
    assert index.size > 0
    assert index.built_at is not None


def test_the_default_is_hnsw_in_half_precision_where_the_server_has_it(conn: Connection) -> None:
    fill(conn)
    index = indexes.build(conn, "geoid_states")
    assert (index.method, index.precision) == ("hnsw", "half" if modern(conn) else "full")


def test_options_that_are_given_are_the_indexs(conn: Connection) -> None:
    fill(conn)
    hnsw = indexes.build(conn, "geoid_states", m=5, ef_construction=33)
    assert (hnsw.m, hnsw.ef_construction) == (5, 33)
    assert indexes.build(conn, "geoid_states", **SPECIFIED, lists=7).lists == 7


@pytest.mark.parametrize(
    ("rows", "lists"),
    [(1, 100), (100_000, 100), (101_000, 101), (1_000_000, 1000), (4_000_000, 2000), (2 * 10**9, 32768)],
)
def test_lists_follow_pgvectors_rule_past_100_000_rows(rows: int, lists: int) -> None:
    assert kinds.options("ivfflat", rows, lists=None, m=None, ef_construction=None) == {"lists": lists}


def test_ef_construction_is_at_least_twice_m() -> None:
    assert kinds.options("hnsw", 1, lists=None, m=50, ef_construction=None) == {"m": 50, "ef_construction": 100}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "flat"}, "method: expected hnsw or ivfflat, got 'flat'"),
        ({"precision": "double"}, "precision: expected one of full, half, binary, got 'double'"),
        ({"m": 1}, "m: "),
        ({"m": 101}, "m: "),
        ({"m": 16.0}, "m: "),
        ({"ef_construction": 31}, "ef_construction: "),
        ({"ef_construction": 1001}, "ef_construction: "),
        ({"lists": 10}, "lists is an option of ivfflat"),
        ({**SPECIFIED, "lists": 0}, "lists: "),
        ({**SPECIFIED, "lists": 32769}, "lists: "),
        ({**SPECIFIED, "m": 16}, "m and ef_construction are options of hnsw"),
        ({**SPECIFIED, "ef_construction": 64}, "m and ef_construction are options of hnsw"),
        ({"concurrently": True}, "conn: what runs concurrently needs an autocommit connection"),
    ],
)
def test_bad_options_are_refused(conn: Connection, options: dict[str, Any], message: str) -> None:
    fill(conn, 1)
    with pytest.raises(InvalidValue, match=f"^{message}"):
        indexes.build(conn, "geoid_states", **options)
    assert indexes.existing(conn) == []


def test_existing_lists_by_table_and_name(conn: Connection) -> None:
    fill(conn)
    embedding = indexes.build(conn, "semantic_embeddings")
    specified = indexes.build(conn, "geoid_states", **SPECIFIED)
    hnsw = indexes.build(conn, "geoid_states", precision="full")
    conn.execute("CREATE INDEX other ON geoid_states USING hnsw (state_vector vector_l2_ops)")
    assert [index.name for index in indexes.existing(conn)] == [specified.name, hnsw.name, embedding.name]
    assert indexes.find(conn, hnsw.name).name == hnsw.name


@pytest.mark.parametrize("call", [indexes.find, indexes.drop, indexes.retrain])
def test_an_index_that_is_not_there_is_not_found(conn: Connection, call: Callable[[Connection, str], object]) -> None:
    with pytest.raises(NotFound, match=r"^no vector index has the name idx_geoid_tags$"):
        call(conn, "idx_geoid_tags")


def test_drop_leaves_nothing_of_an_index(conn: Connection) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states").name
    recall.tune(conn, "geoid_states", target=0.5, sample=5)
    indexes.drop(conn, name)
    assert indexes.existing(conn) == []
    left = conn.execute(
        "SELECT index_name FROM kimera_vector_indexes UNION SELECT index_name FROM kimera_recall_settings"
    )
    assert left.fetchall() == []


def test_an_index_built_anew_has_no_settings_of_one_of_its_name(conn: Connection) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states").name
    recall.tune(conn, "geoid_states", target=0.5, sample=5)
    conn.execute(f"DROP INDEX {name}".encode())
    assert indexes.build(conn, "geoid_states").tuned == {}


@pytest.mark.parametrize("concurrently", [True, False])
def test_maintenance_work_mem_is_raised_for_the_build_alone(large: Connection, concurrently: bool) -> None:
    large.execute("""
        CREATE TABLE seen (value TEXT);
        CREATE FUNCTION see() RETURNS event_trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO seen VALUES (current_setting('maintenance_work_mem')); END$$;
        CREATE EVENT TRIGGER see ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION see();
        SET maintenance_work_mem = '2MB';
        SET max_parallel_maintenance_workers = 1;
        SET effective_cache_size = '1GB';
    """)
    large.autocommit = concurrently
    indexes.build(large, "geoid_states", m=4, concurrently=concurrently)
    assert (show(large, "maintenance_work_mem"), show(large, "max_parallel_maintenance_workers")) == ("2MB", "1")
    seen = large.execute("SELECT pg_size_bytes(value) / 2^20 FROM seen").fetchall()
    (row,) = seen
    assert 6 < row[0] < 20


def test_maintenance_work_mem_is_at_most_a_quarter_of_the_cache(large: Connection) -> None:
    large.execute("""
        CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE 'has %', current_setting('maintenance_work_mem'); END$$;
        CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse();
        SET maintenance_work_mem = '1MB';
        SET effective_cache_size = '8MB';
    """)
    with pytest.raises(psycopg.errors.RaiseException, match="has 2MB"):
        indexes.build(large, "geoid_states", concurrently=True)
    assert show(large, "maintenance_work_mem") == "1MB"


def test_building_tells_how_far_a_build_is(large: Connection, database: str) -> None:
    assert indexes.building(large) == []
    with while_it_builds(database, lambda conn: indexes.build(conn, "geoid_states")) as (watching, builder):
        (one,) = indexes.building(watching)
        assert one.table == "geoid_states"
        assert one.phase.startswith("building index")
        assert 0 <= one.done <= one.total
        builder.cancel()


def test_clean_leaves_alone_what_is_being_built(large: Connection, database: str) -> None:
    def build(conn: Connection) -> object:
        return indexes.build(conn, "geoid_states", concurrently=True)

    with while_it_builds(database, build) as (watching, builder):
        assert len(invalid(watching)) == 1
        assert indexes.clean(watching) == []
        builder.cancel()


def test_a_cancelled_concurrent_build_leaves_nothing_and_its_connection_usable(autocommit: Connection) -> None:
    fill_large(autocommit)
    with cancelled_soon(autocommit), pytest.raises(psycopg.errors.QueryCanceled):
        indexes.build(autocommit, "geoid_states", m=64, ef_construction=1000, concurrently=True)
    assert invalid(autocommit) == []
    assert indexes.existing(autocommit) == []
    assert indexes.build(autocommit, "geoid_states", **SPECIFIED, lists=1, concurrently=True).usable


def test_a_concurrent_build_that_waits_in_vain_leaves_the_index_of_its_name(large: Connection, database: str) -> None:
    index = indexes.build(large, "geoid_states", **SPECIFIED, lists=1)
    with psycopg.connect(database) as other:
        other.execute("LOCK geoid_states IN SHARE UPDATE EXCLUSIVE MODE")
        with cancelled_soon(large), pytest.raises(psycopg.errors.QueryCanceled):
            indexes.build(large, "geoid_states", **SPECIFIED, concurrently=True)
    assert indexes.existing(large)[0].name == index.name


@pytest.mark.ends
def test_clean_leaves_alone_what_another_role_builds(large: Connection, database: str) -> None:
    def build(conn: Connection) -> object:
        return indexes.build(conn, "geoid_states", concurrently=True)

    with while_it_builds(database, build) as (watching, builder):
        # A role that is not shown what the others' builds are of
        watching.execute("SET ROLE pg_signal_backend")
        assert len(invalid(watching)) == 1
        assert indexes.clean(watching) == []
        builder.cancel()


@pytest.mark.ends
@pytest.mark.parametrize("connect", [psycopg.connect, asynchronous])
def test_a_build_whose_connection_is_ended_says_so_and_the_next_one_clears_up(
    large: Connection, database: str, connect: Callable[[str], Any]
) -> None:
    notes: list[str] = []

    def build(conn: Connection) -> object:
        try:
            return indexes.build(conn, "geoid_states", concurrently=True)
        except psycopg.OperationalError as error:
            notes.extend(error.__notes__)
            raise

    with while_it_builds(database, build, connect) as (watching, builder):
        watching.execute("SELECT pg_terminate_backend(%s, 20000)", [builder.info.backend_pid])
    assert notes == ["it may have left an unfinished index, which `kimera-sql index clean` drops"]
    (name,) = invalid(large)
    built = indexes.build(large, "geoid_states", m=2, ef_construction=4, concurrently=True)
    assert (built.name, built.usable) == (name, True)
    assert invalid(large) == []


def test_clean_drops_what_a_killed_build_left(large: Connection, database: str) -> None:
    def build(conn: Connection) -> object:
        return indexes.build(conn, "geoid_states", concurrently=True)

    with while_it_builds(database, build) as (watching, builder):
        watching.execute("SELECT pg_terminate_backend(%s, 20000)", [builder.info.backend_pid])
    (name,) = invalid(large)
    assert not indexes.find(large, name).usable
    assert geoids.explain(large, VECTORS[0]).index is None
    assert indexes.clean(large) == [name]
    assert invalid(large) == []
    assert indexes.clean(large) == []


def test_retrain_takes_the_rows_that_are_there_now(autocommit: Connection) -> None:
    fill(autocommit, 20)
    old = indexes.build(autocommit, "geoid_states", **SPECIFIED, lists=2)
    recall.tune(autocommit, "geoid_states", target=0.5, sample=5)
    fill(autocommit)
    assert [one.name for one in indexes.aged(autocommit)] == [old.name]
    new = indexes.retrain(autocommit, old.name)
    assert (old.rows_at_build, new.rows_at_build) == (20, 80)
    assert (new.name, new.lists, new.usable, new.tuned) == (old.name, 2, True, {})
    assert indexes.aged(autocommit) == []
    assert invalid(autocommit) == []


@pytest.mark.ends
@pytest.mark.parametrize("name", ['A "quoted". name', "it's; 100 %s {} :name\\\n☃" + "x" * 37])
def test_an_index_of_any_name_is_tuned_retrained_and_dropped(database: str, name: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill(conn)
        create = composed.SQL("CREATE INDEX {} ON geoid_states USING ivfflat (state_vector vector_cosine_ops)")
        conn.execute(create.format(composed.Identifier(name)))
        assert {one.index for one in recall.tune(conn, "geoid_states", target=0.5)} == {name}
        assert indexes.find(conn, name).tuned
        assert indexes.retrain(conn, name).rows_at_build == len(VECTORS)
        assert [one.index for one in maintenance.reindex(conn, [name])] == [name]
        indexes.drop(conn, name)
        assert indexes.existing(conn) == []


def test_retrain_needs_an_autocommit_connection(conn: Connection) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states").name
    with pytest.raises(InvalidValue, match=r"^conn: what runs concurrently needs an autocommit connection"):
        indexes.retrain(conn, name)


def test_sqlite_has_no_vector_indexes(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as conn:
        assert (indexes.existing(conn), indexes.building(conn), indexes.clean(conn)) == ([], [], [])
        with pytest.raises(UnsupportedByServer, match=r"^SQLite has no vector indexes"):
            indexes.build(conn, "geoid_states")
        with pytest.raises(NotFound):
            indexes.drop(conn, "idx_geoid_vector")
