"""Every pair of similar rows: geoids.pairs and embeddings.duplicates beside a comparison of all with all."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any, Final
from unittest import mock
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg.pq import TransactionStatus
from reference import BAD_IDS, BAD_NUMBERS, clustered, cosines, seconds
from strategies import unit
from strategies import vectors as any_vectors

from kimera_sql import add_adapters, aio, embeddings, geoids
from kimera_sql.errors import InvalidValue
from kimera_sql.geoids import Pair
from kimera_sql.search import blocks
from kimera_sql.search.blocks import Block
from kimera_sql.sql import Connection

pytestmark = pytest.mark.ends

ROWS: Final = 300
NEAR: Final = 1e-9
"""Two cosines in double precision that differ by less may stand on either side of a threshold."""


def rows() -> NDArray[np.float32]:
    """Clusters, and among them a clump of copies of one row, scaled, and copies that are moved a little."""
    vectors = clustered(ROWS, seed=14)
    random = np.random.default_rng(14)
    vectors[40:60] = vectors[7] * random.uniform(1e-3, 1e3, (20, 1)).astype(np.float32)
    vectors[100:200] = vectors[200:300] + random.uniform(0, 0.5, (100, 1)) * random.standard_normal((100, 1024))
    return vectors


VECTORS: Final = rows()
IDS: Final = [UUID(int=(number * 7919 + 1) % 10007) for number in range(ROWS)]


def fill(conn: Connection) -> None:
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(id=id, state_vector=vector, entropy=number % 3, coherence_factor=0, energy_level=0)
            for number, (id, vector) in enumerate(zip(IDS, VECTORS, strict=True))
        ],
    )
    embeddings.insert_many(
        conn,
        [
            embeddings.NewEmbedding(
                id=id, text_content=str(number), embedding=vector, source="old" if number % 3 else "new"
            )
            for number, (id, vector) in enumerate(zip(IDS, VECTORS, strict=True))
        ],
    )


def expected(similarity: float, passes: Callable[[int], bool] = lambda number: True) -> dict[tuple[UUID, UUID], float]:
    """Every pair, by comparing all with all."""
    numbers = sorted(filter(passes, range(ROWS)), key=lambda number: IDS[number])
    ids, compared = [IDS[number] for number in numbers], cosines(VECTORS[numbers], VECTORS[numbers])
    return {
        (ids[one], ids[other]): compared[one, other]
        for one, other in zip(*np.nonzero(np.triu(compared >= similarity - NEAR, 1)), strict=True)
    }


def assert_all(found: list[Pair], wanted: dict[tuple[UUID, UUID], float]) -> None:
    assert [(pair.first, pair.second) for pair in found] == sorted(wanted)
    np.testing.assert_allclose([pair.similarity for pair in found], [wanted[key] for key in sorted(wanted)], atol=1e-9)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, read 16 at a time, so that a few hundred rows are many blocks."""
    for name in ("kimera_sql.search.pairs", "kimera_sql.aio.search.pairs"):
        monkeypatch.setattr(importlib.import_module(name), "_BLOCK", 64)
        monkeypatch.setattr(importlib.import_module(name), "_CHUNK", 16)
    monkeypatch.setattr(blocks, "_TILE", 24)


@pytest.mark.parametrize("similarity", [-1, 0.5, 0.9, 0.99, 1])
def test_every_pair_is_found_once_and_in_order(conn: Connection, similarity: float) -> None:
    fill(conn)
    wanted = expected(similarity)
    assert len(wanted) >= 200  # the clump, at the least
    assert_all(list(geoids.pairs(conn, similarity)), wanted)
    assert_all(list(embeddings.duplicates(conn, similarity)), wanted)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("most", [10**6, 50])
def test_many_blocks_find_the_same(conn: Connection, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that finds more than so many pairs gives up rows, down to one if need be."""
    monkeypatch.setattr(blocks, "_MOST", most)
    fill(conn)
    assert_all(list(geoids.pairs(conn, 0.8)), expected(0.8))


def test_the_default_is_a_similarity_of_0_9_for_states_and_0_95_for_embeddings(conn: Connection) -> None:
    fill(conn)
    assert_all(list(geoids.pairs(conn)), expected(0.9))
    assert_all(list(embeddings.duplicates(conn)), expected(0.95))
    assert len(expected(0.9)) > len(expected(0.95)) > len(expected(0.96))


def test_both_rows_of_a_pair_pass_the_filters(conn: Connection) -> None:
    fill(conn)
    assert_all(list(geoids.pairs(conn, 0.8, entropy=(1, None))), expected(0.8, lambda number: number % 3 >= 1))
    assert_all(list(embeddings.duplicates(conn, 0.8, source="new")), expected(0.8, lambda number: number % 3 == 0))
    assert list(geoids.pairs(conn, 0.8, until=seconds(-(10**9)))) == []


@pytest.mark.usefixtures("small_blocks")
def test_after_goes_on_behind_that_pair(conn: Connection) -> None:
    fill(conn)
    found = list(geoids.pairs(conn, 0.9, entropy=(0, 1)))
    for number in range(0, len(found), len(found) // 7):
        pair = found[number]
        assert list(geoids.pairs(conn, 0.9, after=(pair.first, pair.second), entropy=(0, 1))) == found[number + 1 :]
    geoids.delete(conn, found[50].first)
    rest = [pair for pair in found[51:] if found[50].first not in (pair.first, pair.second)]
    assert list(geoids.pairs(conn, 0.9, after=(found[50].first, found[50].second), entropy=(0, 1))) == rest


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows_make_few_pairs(conn: Connection, count: int) -> None:
    for number in range(count):
        embeddings.insert(conn, embeddings.NewEmbedding(text_content=str(number), embedding=unit(0) * (number + 1)))
    found = list(embeddings.duplicates(conn))
    assert [pair.similarity for pair in found] == [pytest.approx(1)] * (count - 1)
    assert all(pair.first < pair.second for pair in found)


@pytest.mark.usefixtures("small_blocks")
def test_rows_can_be_written_between_pairs(conn: Connection) -> None:
    """Keeping the first of each group: what is deleted drops out of later blocks, what is inserted stays out."""
    fill(conn)
    gone: set[UUID] = set()
    for pair in geoids.pairs(conn, 0.9):
        if pair.first not in gone and pair.second not in gone:
            assert geoids.delete(conn, pair.second)
            gone.add(pair.second)
            new = geoids.NewGeoid(state_vector=VECTORS[7], entropy=9, coherence_factor=0, energy_level=0)
            geoids.insert(conn, new)
    assert list(geoids.pairs(conn, 0.9, entropy=(None, 8))) == []
    kept = {state.id for state in geoids.stream(conn) if state.entropy < 9}
    lost = {id for id in IDS if id not in kept}
    assert lost == gone
    for id in lost:
        assert any(other in kept for pair in expected(0.9) if id in pair for other in pair if other != id)


@pytest.mark.usefixtures("small_blocks")
def test_all_rows_of_a_block_can_be_gone_by_the_time_it_is_read(conn: Connection) -> None:
    fill(conn)
    order = sorted(IDS)
    found = geoids.pairs(conn, 0.5)
    first = next(found)
    for id in order[64:256]:
        geoids.delete(conn, id)
    rest = list(found)
    wanted = sorted(key for key in expected(0.5) if key[0] in order[:64] or {*key} <= {*order[256:]})
    assert [(pair.first, pair.second) for pair in [first, *rest]] == wanted


@pytest.mark.parametrize("similarity", [*BAD_NUMBERS, 1.01, -1.01, None])
def test_a_similarity_that_cannot_be_is_refused_at_the_call(conn: Connection, similarity: Any) -> None:
    for function in (geoids.pairs, embeddings.duplicates):
        with pytest.raises(InvalidValue, match=r"^similarity: "):
            function(conn, similarity)


@pytest.mark.parametrize("after", [*((bad, IDS[0]) for bad in BAD_IDS), (IDS[0],), IDS[0], [IDS[0], IDS[1]], "ab"])
def test_what_is_no_pair_of_ids_is_refused_at_the_call(conn: Connection, after: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^after: "):
        geoids.pairs(conn, after=after)
    with pytest.raises(InvalidValue, match=r"^after: "):
        embeddings.duplicates(conn, after=after)


def test_what_is_no_filter_is_refused_at_the_call(conn: Connection) -> None:
    with pytest.raises(InvalidValue, match=r"^entropy: "):
        geoids.pairs(conn, entropy=(1, 0))
    with pytest.raises(TypeError, match="unexpected keyword argument 'k'"):
        geoids.pairs(conn, k=3)  # type: ignore[call-arg]


@pytest.fixture
def autocommit(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill(conn)
        yield conn


@pytest.mark.usefixtures("small_blocks")
def test_nothing_is_open_between_pairs(autocommit: psycopg.Connection[Any]) -> None:
    with closing(geoids.pairs(autocommit, 0.9)) as found:  # type: ignore[type-var]
        for _ in range(20):
            next(found)
            assert autocommit.info.transaction_status == TransactionStatus.IDLE
            assert autocommit.execute("SELECT FROM pg_cursors WHERE name <> ''").rowcount == 0
    assert autocommit.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.usefixtures("small_blocks")
def test_a_caller_can_commit_and_roll_back_between_pairs(database: str) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
        conn.commit()
        found = []
        for number, pair in enumerate(geoids.pairs(conn, 0.9)):
            found.append(pair)
            (conn.commit if number % 2 else conn.rollback)()
        assert_all(found, expected(0.9))


@pytest.mark.ends
@pytest.mark.usefixtures("small_blocks")
def test_a_connection_that_is_lost_is_an_error_and_after_goes_on(database: str) -> None:
    found = []
    with psycopg.connect(database, autocommit=True) as conn, psycopg.connect(database, autocommit=True) as other:
        add_adapters(conn)
        fill(conn)
        pairs = geoids.pairs(conn, 0.9)
        found.append(next(pairs))
        other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            found += pairs
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        found += geoids.pairs(conn, 0.9, after=(found[-1].first, found[-1].second))
        assert_all(found, expected(0.9))


def test_a_role_that_may_not_read_the_table_is_an_error(autocommit: psycopg.Connection[Any]) -> None:
    with autocommit.transaction(force_rollback=True):
        autocommit.execute("CREATE ROLE kimera_test_nobody")
        autocommit.execute("SET LOCAL ROLE kimera_test_nobody")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            list(geoids.pairs(autocommit))


def test_other_tasks_run_while_rows_are_compared(database: str) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)

    async def both() -> int:
        async with await psycopg.AsyncConnection.connect(database) as conn:
            await aio.add_adapters(conn)
            ticks, done = 0, asyncio.Event()

            async def tick() -> None:
                nonlocal ticks
                while not done.is_set():
                    ticks += 1
                    await asyncio.sleep(0.001)

            task = asyncio.create_task(tick())
            assert_all([pair async for pair in aio.geoids.pairs(conn, 0.9)], expected(0.9))
            done.set()
            await task
            return ticks

    assert asyncio.run(both()) > 10


FEW: Final = st.lists(any_vectors | st.integers(0, 3).map(unit), min_size=2, max_size=12)


@given(FEW, st.floats(-1, 1))
def test_a_block_rules_out_no_pair_that_is_similar(vectors: list[NDArray[np.float32]], similarity: float) -> None:
    """Vectors of every scale, equal ones, ones along few axes: the bound is one."""
    # 64 of their dimensions: to find the axes of all 1024 takes a second.
    array, places = np.array(vectors)[:, -64:], np.arange(len(vectors), dtype=np.int32)
    with mock.patch.multiple(blocks, _WORTH_IT=0, _AXES=(4,), _FEW=1):
        block = Block([(places, array)], len(places), similarity)
    block.compare(places, array)
    found = {(int(first), int(second)) for first, second, _ in zip(*block.pairs(), strict=True)}
    compared = cosines(array, array)
    every = [(one, other) for one in range(len(array)) for other in range(one + 1, len(array))]
    assert {pair for pair in every if compared[pair] >= similarity + NEAR} <= found
    assert found <= {pair for pair in every if compared[pair] >= similarity - 2 * NEAR}


@pytest.mark.parametrize("similarity", [0.3, 0.9])
def test_any_number_of_axes_gives_the_same_pairs(similarity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.arange(ROWS, dtype=np.int32)
    found = []
    monkeypatch.setattr(blocks, "_WORTH_IT", 0)
    monkeypatch.setattr(blocks, "_FEW", 1)
    for axes in ((1,), (8,), (64, 128), ()):
        monkeypatch.setattr(blocks, "_AXES", axes)
        block = Block([(places, VECTORS)], ROWS, similarity)
        block.compare(places, VECTORS)
        found.append([column.tolist() for column in block.pairs()])
    assert len(found[0][0]) > 100
    assert all(one == other for one, other in pairwise(found))


def test_few_pairs_are_left_to_be_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the bound would be of no use; where it can't be, all components make it exact."""
    compared: list[int] = []
    cosines_of = blocks._cosines

    def counted(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
        compared.append(len(one))
        return cosines_of(one, other)

    monkeypatch.setattr(blocks, "_cosines", counted)
    flat = np.random.default_rng(0).standard_normal((2000, 1024)).astype(np.float32)
    places = np.arange(2000, dtype=np.int32)
    for vectors in (flat, clustered(2000)):
        compared.clear()
        block = Block([(places, vectors)], 2000, 0.9)
        block.compare(places, vectors)
        assert sum(compared) <= 0.005 * 2000 * 2000 / 2 + 2 * len(block.pairs()[0])
