"""Searches with a threshold, and those without a k: what is similar enough, and page after page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from functools import cache
from itertools import islice, product
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_servers import ENDS, Server, index_kinds
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from reference import BAD_LIMITS, BAD_NUMBERS, BAD_VECTORS, clustered, cosines
from strategies import unit

from kimera_sql import InvalidValue, SqlitePool, add_adapters, aio, embeddings, geoids, indexes, model, open_pool, sql
from kimera_sql.errors import VectorError
from kimera_sql.search import looks, recall
from kimera_sql.sql import Connection, postgres
from kimera_sql.vectors import DIMENSIONS, Vector

pytestmark = pytest.mark.ends

CORNERS: Final = st.sampled_from(list(product((-1, 1), repeat=4)))
"""Between any two of these the cosine is 1, 0.5, 0, -0.5 or -1, in any arithmetic."""


def vector(corner: Sequence[int]) -> Vector:
    return np.array([*corner, *[0] * (DIMENSIONS - len(corner))], np.float32)


def state(number: int, one: Vector, *tags: str) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        id=UUID(int=number), state_vector=one, entropy=number, coherence_factor=0, energy_level=0, tags=tags
    )


def text(number: int, one: Vector, source: str | None = None) -> embeddings.NewEmbedding:
    return embeddings.NewEmbedding(id=UUID(int=number), text_content=str(number), embedding=one, source=source)


def found(hits: Sequence[Any]) -> list[tuple[int, float]]:
    """The number and the similarity of each of the *hits*, states or texts."""
    return [(getattr(hit, type(hit).__slots__[0]).id.int, hit.similarity) for hit in hits]


@contextmanager
def undone(conn: Connection) -> Iterator[None]:
    """Start from empty tables, and roll back."""
    try:
        yield
    finally:
        conn.rollback()


rows_and_query = given(
    rows=st.lists(st.tuples(CORNERS, st.booleans()), max_size=25),
    corner=CORNERS,
    at_least=st.sampled_from([-1, -0.75, -0.5, 0, 0.4, 0.5, 0.51, 1]),
    size=st.integers(1, 8),
    filtered=st.booleans(),
    with_vectors=st.booleans(),
)


@rows_and_query
def test_what_is_similar_enough_comes_and_every_row_is_on_one_page(
    conn: Connection, rows: Any, corner: Any, at_least: float, size: int, filtered: bool, with_vectors: bool
) -> None:
    with undone(conn):
        # The numbers are in another order than the rows.
        made = {(place + 1) * 7919 % 10007: row for place, row in enumerate(rows)}
        tags = {number: "some" if tagged else "others" for number, (_, tagged) in made.items()}
        geoids.insert_many(conn, [state(n, vector(one), tags[n]) for n, (one, _) in made.items()])
        embeddings.insert_many(conn, [text(n, vector(one), tags[n]) for n, (one, _) in made.items()])
        cosine = {n: float(np.dot(one, corner)) / 4 for n, (one, tagged) in made.items() if tagged or not filtered}
        expected = sorted(cosine.items(), key=lambda item: (-item[1], item[0]))
        above = [item for item in expected if item[1] >= at_least]
        for module, filters in ((geoids, {"tags_any": ["some"]}), (embeddings, {"source": "some"})):
            options = {"with_vectors": with_vectors, **(filters if filtered else {})}
            hits = list(module.within(conn, vector(corner), at_least, **options))
            assert found(hits) == above
            cut = module.similar(conn, vector(corner), 7, at_least=at_least, **options)
            assert found(cut) == above[:7]
            (many,) = module.similar_many(conn, [vector(corner)], 7, at_least=at_least, **(filters if filtered else {}))
            assert found(many) == above[:7]
            pages = list(module.similar_pages(conn, vector(corner), size, **options))
            assert [found(page) for page in pages] == [
                expected[start : start + size] for start in range(0, len(expected), size)
            ]
            for hit in [*hits, *cut, *(hit for page in pages for hit in page)]:
                if with_vectors:
                    np.testing.assert_array_equal(hit.vector, vector(made[found([hit])[0][0]][0]))
                else:
                    assert hit.vector is None


@given(seed=st.integers(0, 2**32), exponent=st.integers(-14, 17))
def test_a_rows_own_vector_is_as_similar_as_can_be(conn: Connection, seed: int, exponent: int) -> None:
    with undone(conn):
        own = unit(seed) * np.float32(10.0**exponent)
        geoids.insert(conn, state(1, own))
        assert found(geoids.similar(conn, own, at_least=1)) == [(1, 1)]
        assert found(list(geoids.within(conn, own, 1))) == [(1, 1)]


def test_similar_to_is_cut_and_leaves_the_row_itself_out(conn: Connection) -> None:
    geoids.insert_many(conn, [state(n, vector((1, 1, 1, 1 - 2 * (n % 2)))) for n in range(6)])
    assert found(geoids.similar_to(conn, UUID(int=0), at_least=0.9)) == [(2, 1), (4, 1)]


def test_a_threshold_counts_before_diversity_chooses(conn: Connection) -> None:
    geoids.insert_many(conn, [state(n, vector(one)) for n, one in enumerate([(1, 1, 1, 1)] * 3 + [(1, 1, 1, -1)] * 3)])
    diverse = geoids.similar(conn, vector((1, 1, 1, 1)), 2, diversity=0.9)
    assert {similarity for _, similarity in found(diverse)} == {1, 0.5}
    cut = geoids.similar(conn, vector((1, 1, 1, 1)), 2, diversity=0.9, at_least=0.8)
    assert {similarity for _, similarity in found(cut)} == {1}


def test_rows_are_those_that_there_were_when_they_were_compared(conn: Connection) -> None:
    geoids.insert_many(conn, [state(n, vector((1, 1, 1, 1))) for n in range(5)])
    query = vector((1, 1, 1, 1))
    hits, pages = geoids.within(conn, query, 0.5, with_vectors=True), geoids.similar_pages(conn, query, 2)
    begun = [next(hits), *next(pages)]
    geoids.delete(conn, UUID(int=3))
    geoids.update_metadata(conn, UUID(int=4), {"late": True})
    geoids.insert(conn, state(9, query))
    rest = [*hits, *(hit for page in pages for hit in page)]
    assert [number for number, _ in found([*begun, *rest])] == [0, 0, 1, 1, 2, 3, 4, 2, 3, 4]
    assert not any(hit.geoid.metadata for hit in rest)


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 1.0000001, -1.5, np.float32(2)], ids=str)
def test_a_threshold_that_is_none_is_refused_at_the_call(conn: Connection, bad: Any) -> None:
    for module in (geoids, embeddings):
        with pytest.raises(InvalidValue, match=r"^similarity: "):
            module.within(conn, unit(1), bad)
        with pytest.raises(InvalidValue, match=r"^at_least: "):
            module.similar(conn, unit(1), at_least=bad)
        with pytest.raises(InvalidValue, match=r"^at_least: "):
            module.similar_many(conn, [unit(1)], at_least=bad)


@pytest.mark.parametrize("bad", BAD_LIMITS, ids=str)
def test_a_size_that_is_none_is_refused_at_the_call(conn: Connection, bad: Any) -> None:
    for module in (geoids, embeddings):
        with pytest.raises(InvalidValue, match=r"^size: "):
            module.similar_pages(conn, unit(1), bad)


def test_other_bad_arguments_are_refused_at_the_call(conn: Connection) -> None:
    for module in (geoids, embeddings):
        calls: tuple[Callable[..., Any], ...] = (
            lambda conn, vector, module=module, **named: module.within(conn, vector, 0, **named),
            lambda conn, vector, module=module, **named: module.similar_pages(conn, vector, **named),
        )
        for call in calls:
            for bad in BAD_VECTORS:
                with pytest.raises(VectorError, match=r"^vector: "):
                    call(conn, bad)
            for named in ({"ef_search": 0}, {"probes": "1"}, {"recall": 1.5}, {"since": 1}):
                with pytest.raises(InvalidValue, match=rf"^{next(iter(named))}: "):
                    call(conn, unit(1), **named)
            with pytest.raises(TypeError, match="unexpected keyword argument 'tag'"):
                call(conn, unit(1), tag="a")
            with pytest.raises(TypeError, match=r"^expected a \S+ or \S+, got str"):
                call("postgresql://", unit(1))


ROWS: Final = 1500
_MADE: Final = clustered(ROWS + 40)
VECTORS, QUERIES = _MADE[:ROWS], _MADE[ROWS:]
SIMILARITIES: Final = cosines(QUERIES, VECTORS)
"""Rows and queries in clusters."""


@pytest.fixture(scope="module")
def filled(start: Callable[[str], Server]) -> Iterator[Callable[[str], str]]:
    """A function that returns the conninfo of a database with ROWS states on the server of a name."""
    with ExitStack() as stack:

        @cache
        def made(name: str) -> str:
            server = start(name)
            conninfo = server.create(template=server.template)
            stack.callback(server.drop, conninfo)
            with psycopg.connect(conninfo) as conn:
                add_adapters(conn)
                tags = [["tenth"] if number % 10 == 0 else [] for number in range(ROWS)]
                geoids.insert_many(conn, (state(n, one, *tags[n]) for n, one in enumerate(VECTORS)))
            return conninfo

        yield made


@pytest.fixture(scope="module", params=[kind for kind in index_kinds() if kind[0] in ENDS], ids="-".join)
def searched(request: pytest.FixtureRequest, filled: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    """An autocommit connection to each server with each kind of index in turn, tuned."""
    server, method, precision = request.param
    with psycopg.connect(filled(server), autocommit=True) as conn:
        add_adapters(conn)
        index = indexes.build(conn, "geoid_states", method=method, precision=precision)
        recall.tune(conn, "geoid_states", target=0.95, sample=100)
        yield conn
        indexes.drop(conn, index.name)


@pytest.mark.parametrize("above", [5, 50, 300, 900])
@pytest.mark.parametrize("every", [1, 10])
def test_within_finds_the_promised_share_of_all_that_there_are(
    searched: psycopg.Connection, above: int, every: int
) -> None:
    there = SIMILARITIES[:, ::every]
    at_least = float(np.median(np.sort(there)[:, -above // every]))
    shares = []
    for query, similarities in zip(QUERIES, there, strict=True):
        hits = found(list(geoids.within(searched, query, at_least, tags_any=["tenth"] if every == 10 else None)))
        assert [similarity for _, similarity in hits] == sorted((one for _, one in hits), reverse=True)
        numbers = [number for number, _ in hits]
        # Single precision has them within 1e-6 of numpy's.
        assert all(similarities[number // every] >= at_least - 1e-6 for number in numbers)
        assert len(set(numbers)) == len(numbers)
        if (similarities >= at_least + 1e-6).any():
            shares.append(np.isin(np.flatnonzero(similarities >= at_least + 1e-6) * every, numbers).mean())
        if above == 900:
            assert len(numbers) >= (similarities >= at_least + 1e-6).sum()
    assert np.mean(shares) >= 0.95


@pytest.mark.parametrize("size", [1, 20, 499, 501, 2 * ROWS])
@pytest.mark.parametrize(
    "filters", [{}, {"tags_any": ["tenth"]}, {"entropy": (700, None)}, {"entropy": (-2, -1)}], ids=str
)
def test_every_row_comes_once_however_many_pages_are_read(
    searched: psycopg.Connection, size: int, filters: Any
) -> None:
    expected = {state.id.int for state in geoids.find(searched, limit=ROWS, **filters)}
    pages = [found(page) for page in geoids.similar_pages(searched, QUERIES[0], size, **filters)]
    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
    numbers = [number for page in pages for number, _ in page]
    assert (set(numbers), len(numbers)) == (expected, len(expected))
    assert len(pages) == -(-len(expected) // size)
    strict = [found(page) for page in geoids.similar_pages(searched, QUERIES[0], size, exact=True, **filters)]
    ordered = [similarity for page in strict for _, similarity in page]
    assert ordered == sorted(ordered, reverse=True)
    assert {number for page in strict for number, _ in page} == expected


@pytest.fixture(scope="module")
def original() -> Iterator[Callable[[Server], str]]:
    """A function that returns the name of a server's database with 700 states and 700 texts, to make copies of."""
    with ExitStack() as stack:

        @cache
        def made(server: Server) -> str:
            conninfo = server.create(template=server.template)
            stack.callback(server.drop, conninfo)
            with psycopg.connect(conninfo) as conn:
                add_adapters(conn)
                geoids.insert_many(conn, [state(number, unit(number)) for number in range(700)])
                embeddings.insert_many(conn, [text(number, unit(number)) for number in range(700)])
                indexes.build(conn, "geoid_states")
                return conn.info.dbname

        yield made


@pytest.fixture
def indexed(server: Server, original: Callable[[Server], str]) -> Iterator[str]:
    """The conninfo of a database of the test's own with 700 states, by an hnsw index, and as many texts, by none."""
    conninfo = server.create(template=original(server))
    yield conninfo
    server.drop(conninfo)


@pytest.fixture
def autocommit(indexed: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(indexed, autocommit=True) as conn:
        add_adapters(conn)
        yield conn


def status(conn: psycopg.Connection) -> TransactionStatus:
    return conn.info.transaction_status


def scans(conn: psycopg.Connection) -> tuple[int, int]:
    """How often the current transaction has read the states, and their index."""
    row = conn.execute("""
        SELECT
            pg_stat_get_xact_numscans('geoid_states'::regclass),
            (SELECT sum(pg_stat_get_xact_numscans(index.indexrelid))::integer FROM pg_index AS index
            JOIN pg_class AS class ON class.oid = index.indexrelid AND class.relname LIKE '%hnsw%')
    """).fetchone()
    assert row is not None
    return row


def test_as_long_as_the_index_serves_the_table_is_not_read(autocommit: psycopg.Connection) -> None:
    with autocommit.transaction():
        assert found(list(geoids.within(autocommit, unit(3), 0.9))) == [(3, 1)]
        pages = geoids.similar_pages(autocommit, unit(3), 20)
        assert len(list(islice(pages, 25))) == 25
        assert scans(autocommit) == (0, 3)
        next(pages)
        assert scans(autocommit)[0] == 1
        # All states are at least so similar.
        assert len(list(geoids.within(autocommit, unit(3), -0.5))) == 700
        assert scans(autocommit)[0] == 2


def test_a_transaction_is_held_only_while_all_rows_are_compared(autocommit: psycopg.Connection) -> None:
    pages = geoids.similar_pages(autocommit, unit(3), 100)
    for _ in range(5):
        next(pages)
        assert status(autocommit) == TransactionStatus.IDLE
    next(pages)
    assert status(autocommit) == TransactionStatus.INTRANS
    assert len(list(pages)) == 1
    assert status(autocommit) == TransactionStatus.IDLE
    hits = geoids.within(autocommit, unit(3), 0.9)
    next(hits)
    assert status(autocommit) == TransactionStatus.IDLE


ENDLESS: Final[dict[str, Callable[[Any], Iterator[Any]]]] = {
    "within": lambda conn: geoids.within(conn, unit(3), -0.5),
    "within exactly": lambda conn: geoids.within(conn, unit(3), -0.5, exact=True),
    "pages": lambda conn: geoids.similar_pages(conn, unit(3), 600),
    "pages exactly": lambda conn: geoids.similar_pages(conn, unit(3), 1, exact=True),
    "within of texts": lambda conn: embeddings.within(conn, unit(3), -0.5),
    "pages of texts": lambda conn: embeddings.similar_pages(conn, unit(3), 1),
}


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_what_is_written_meanwhile_stays_when_it_is_closed_early(
    autocommit: psycopg.Connection, indexed: str, call: Callable[[Any], Any]
) -> None:
    hits = call(autocommit)
    next(hits)
    assert status(autocommit) == TransactionStatus.INTRANS
    geoids.delete(autocommit, UUID(int=9))
    hits.close()
    assert status(autocommit) == TransactionStatus.IDLE
    with psycopg.connect(indexed) as other:
        assert geoids.count(other) == 699


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_it_says_that_its_transaction_has_ended(indexed: str, call: Callable[[Any], Any], end: str) -> None:
    with psycopg.connect(indexed) as conn:
        add_adapters(conn)
        hits = call(conn)
        next(hits)
        getattr(conn, end)()
        with pytest.raises(InvalidValue, match=r"^conn: its transaction ended while rows were being streamed"):
            for _ in hits:
                pass
        assert geoids.count(conn) == 700


def test_before_the_rows_are_compared_a_transaction_may_end(indexed: str) -> None:
    with psycopg.connect(indexed) as conn:
        add_adapters(conn)
        pages = geoids.similar_pages(conn, unit(3), 100)
        numbers = []
        for _ in range(5):
            numbers += found(next(pages))
            conn.commit()
        numbers += [hit for page in pages for hit in found(page)]
        assert len(set(numbers)) == len(numbers) == 700


def test_rows_that_are_written_meanwhile_come_at_most_once(autocommit: psycopg.Connection, indexed: str) -> None:
    with psycopg.connect(indexed, autocommit=True) as other:
        add_adapters(other)
        pages = geoids.similar_pages(autocommit, unit(3), 50)
        first = [number for number, _ in found(next(pages))]
        # The first hit is written anew, another that is still to come goes, and a new one is nearer than all.
        other.execute("UPDATE geoid_states SET energy_level = 1 WHERE id = %s", [UUID(int=first[0])])
        gone = next(number for number in range(700) if number not in first)
        geoids.delete(other, UUID(int=gone))
        geoids.insert(other, state(1000, unit(3)))
        numbers = [number for page in islice(pages, 1) for number, _ in found(page)]
        rest = [number for page in islice(pages, 9) for number, _ in found(page)]
        assert rest[0] == 1000  # on the third page, which is of the second search
        geoids.delete(other, UUID(int=1000))
        last = next(pages)
        geoids.delete_where(other, entropy=(0, None))  # too late: the rows are compared
        numbers += [*rest, *(number for number, _ in found(last))]
        numbers += [number for page in pages for number, _ in found(page)]
        everything = [*first, *numbers]
        assert len(set(everything)) == len(everything)
        assert set(everything) - {gone} == {*range(700), 1000} - {gone}


def settings(conn: psycopg.Connection) -> Any:
    return conn.execute("SELECT current_setting('jit'), current_setting('effective_io_concurrency')").fetchone()


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_settings_hold_for_its_planning_alone(autocommit: psycopg.Connection, call: Callable[[Any], Any]) -> None:
    """A function without parameters is run when a statement that has it is planned."""
    autocommit.execute("""
        CREATE FUNCTION planning() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
            $$BEGIN RAISE NOTICE 'jit %', current_setting('jit'); RETURN true; END$$;
        CREATE ROLE planner;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO planner;
        ALTER TABLE geoid_states ENABLE ROW LEVEL SECURITY;
        ALTER TABLE semantic_embeddings ENABLE ROW LEVEL SECURITY;
        CREATE POLICY seen ON geoid_states USING (planning());
        CREATE POLICY seen ON semantic_embeddings USING (planning());
        SET ROLE planner;
    """)
    try:
        said: list[str | None] = []
        autocommit.add_notice_handler(lambda notice: said.append(notice.message_primary))
        autocommit.execute("SET jit = on")
        autocommit.execute("SET effective_io_concurrency = 3")
        looks.forget(autocommit)
        hits = call(autocommit)
        next(hits)
        assert said[-1] == "jit off"
        assert settings(autocommit) == ("on", "3")
        with autocommit.transaction(force_rollback=True):
            assert settings(autocommit) == ("on", "3")
        hits.close()
        assert settings(autocommit) == ("on", "3")
    finally:
        autocommit.execute("RESET ROLE; DROP OWNED BY planner; DROP ROLE planner")


def test_rows_are_fetched_a_thousand_at_a_time(pg_conn: psycopg.Connection) -> None:
    geoids.insert_many(pg_conn, (state(number, vector((1, 1, 1, 1))) for number in range(1003)))
    hits = geoids.within(pg_conn, vector((1, 1, 1, 1)), 1)
    next(hits)
    (name,) = [row[0] for row in pg_conn.execute("SELECT name FROM pg_cursors").fetchall()]
    assert len(pg_conn.execute(f"FETCH ALL FROM {name}".encode()).fetchall()) == 3


def test_ids_and_distances_alone_are_sorted_whatever_the_planner_prefers(pg_conn: psycopg.Connection) -> None:
    geoids.insert_many(pg_conn, (state(number, unit(number)) for number in range(50)))
    pg_conn.execute("ANALYZE geoid_states")
    statement = sql.Queries("geoids").within.statement(pg_conn).explained()
    given = {"vector": unit(1), "at_least": -1, "with_vectors": True, **model.geoids.where()}
    for setting in ("enable_nestloop = on", "enable_nestloop = off"):
        pg_conn.execute(f"SET LOCAL {setting}".encode())
        plan = [line for (line,) in postgres.fetchall(pg_conn, statement, given)]
        (line,) = [line for line in plan if re.match(r"\W*Sort  ", line)]
        assert line.endswith(" width=24)"), plan  # 16 bytes and 8


def test_nothing_is_streamed_in_pipeline_mode(pg_conn: psycopg.Connection) -> None:
    with pg_conn.pipeline(), pytest.raises(InvalidValue, match=r"^conn: it is in pipeline mode"):
        next(geoids.within(pg_conn, unit(1), 0))


@pytest.mark.ends
@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_a_connection_that_is_lost_is_the_drivers_error(
    autocommit: psycopg.Connection, indexed: str, call: Callable[[Any], Any]
) -> None:
    geoids.insert_many(autocommit, (state(number, unit(number)) for number in range(1000, 1400)))
    embeddings.insert_many(autocommit, (text(number, unit(number)) for number in range(1000, 1400)))
    hits = call(autocommit)
    next(hits)
    with psycopg.connect(indexed, autocommit=True) as other:
        # It ends once its rows are read: it waits to send them.
        other.execute("SELECT pg_terminate_backend(%s)", [autocommit.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        for _ in hits:
            pass
    assert autocommit.closed


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_who_may_not_read_the_rows_gets_the_drivers_error_and_a_usable_connection(
    autocommit: psycopg.Connection, call: Callable[[Any], Any]
) -> None:
    autocommit.execute("CREATE ROLE stranger; SET ROLE stranger")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            next(call(autocommit))
        assert status(autocommit) == TransactionStatus.IDLE
    finally:
        autocommit.execute("RESET ROLE; DROP ROLE stranger")


def test_asynchronous_iterators_that_are_left_early_and_closed_leave_the_connection_usable(indexed: str) -> None:
    async def main() -> None:
        async with aio.open_pool(indexed) as pool, pool.connection() as conn:
            async with aclosing(aio.geoids.within(conn, unit(3), -0.5)) as hits:  # type: ignore[type-var]
                async for hit in hits:
                    assert hit.geoid.id == UUID(int=3)
                    break
            async with aclosing(aio.geoids.similar_pages(conn, unit(3), 600)) as pages:  # type: ignore[type-var]
                assert len(await anext(pages)) == 600
            assert [hit.geoid.id.int async for hit in aio.geoids.within(conn, unit(3), 0.9)] == [3]
            sizes = [len(page) async for page in aio.geoids.similar_pages(conn, unit(3), 50)]
            assert sizes == [50] * 14
            cursors = await (await conn.execute("SELECT count(*) FROM pg_cursors")).fetchone()
            assert cursors == (0,)
            assert await aio.geoids.count(conn) == 700

    asyncio.run(main())


def test_of_a_pool_of_sqlites_too_a_connection_is_needed(tmp_path: Any) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pytest.raises(TypeError, match="got SqlitePool"):
        geoids.within(pool, unit(1), 0)  # type: ignore[arg-type]


def test_many_searches_on_a_pool_are_cut(indexed: str) -> None:
    with open_pool(indexed) as pool:
        asked = [unit(number) for number in range(5)]
        assert [found(hits) for hits in geoids.similar_many(pool, asked, at_least=0.9)] == [
            [(number, 1)] for number in range(5)
        ]
        with pytest.raises(InvalidValue, match=r"^at_least: "):
            geoids.similar_many(pool, asked, at_least=2)
