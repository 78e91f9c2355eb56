"""Recall, measured against numpy and tuned."""

from __future__ import annotations

import math
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import clustered, cosines, shares_found
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, migrate
from kimera_sql.errors import InvalidValue, UnsupportedByServer, VectorError
from kimera_sql.search import indexes, measures, recall
from kimera_sql.sql.postgres import Connection

pytestmark = pytest.mark.ends

_MADE: Final = clustered(1200, seed=1)
VECTORS, FRESH = _MADE[:1000], _MADE[1000:]
SIMILARITIES: Final = cosines(FRESH, VECTORS)


@pytest.fixture
def conn(pg_conn: Connection) -> Connection:
    return pg_conn


def fill(conn: Connection, vectors: NDArray[np.float32]) -> None:
    geoids.insert_many(
        conn,
        [geoids.NewGeoid(state_vector=one, entropy=0, coherence_factor=0, energy_level=0) for one in vectors],
    )


def found(conn: Connection, stored: int, k: int, **options: Any) -> float:
    """The recall of searches for FRESH, by numpy."""
    hits = [geoids.similar(conn, query, k, **options) for query in FRESH]
    shares = shares_found([[hit.similarity for hit in one] for one in hits], SIMILARITIES[:, :stored], k)
    return float(np.mean(shares))


@pytest.fixture
def ivfflat(conn: Connection) -> Connection:
    """A connection to 600 states with an ivfflat index of 30 lists."""
    fill(conn, VECTORS[:600])
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=30)
    conn.execute("SET LOCAL enable_seqscan = off")
    return conn


@pytest.mark.parametrize("probes", [1, 3, 30])
@pytest.mark.parametrize("k", [1, 10])
def test_measure_says_what_numpy_says(ivfflat: Connection, probes: int, k: int) -> None:
    measured = recall.measure(ivfflat, "geoid_states", queries=list(FRESH), k=k, probes=probes)
    expected = found(ivfflat, 600, k, probes=probes)
    assert measured.recall == pytest.approx(expected, abs=1e-9)
    assert 0 <= measured.low <= measured.recall <= measured.high <= 1
    assert (measured.k, measured.queries, measured.setting) == (k, 200, probes)
    assert measured.index == "idx_geoid_vector"
    assert (measured.recall < 0.9) == (probes < 30)


def test_measure_makes_queries_of_rows(ivfflat: Connection) -> None:
    low = recall.measure(ivfflat, "geoid_states", sample=40, probes=1)
    high = recall.measure(ivfflat, "geoid_states", sample=40, probes=30)
    assert (low.queries, high.queries, high.recall) == (40, 40, 1)
    assert low.recall < 0.95


def test_an_older_index_of_the_other_method_does_not_lower_what_was_tuned(conn: Connection) -> None:
    """The server may choose it, and most rows had no part in its lists and settings."""
    vectors = np.array([unit(number) for number in range(900)])
    fill(conn, vectors[:200])
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full")
    recall.tune(conn, "geoid_states")
    fill(conn, vectors[200:700])
    indexes.build(conn, "geoid_states", method="hnsw", precision="full", m=8, ef_construction=32)
    recall.tune(conn, "geoid_states", target=0.95)
    measured = recall.measure(conn, "geoid_states", queries=list(vectors[700:]))
    assert measured.index == "idx_geoid_vector_hnsw_full"
    assert measured.recall >= 0.95


def test_without_an_index_recall_is_1(conn: Connection) -> None:
    fill(conn, VECTORS[:100])
    measured = recall.measure(conn, "geoid_states", sample=20)
    assert (measured.recall, measured.high, measured.index, measured.setting) == (1, 1, None, None)
    assert 0.98 < measured.low < 1


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 10])
def test_tiny_tables_are_measured(conn: Connection, rows: int, k: int) -> None:
    fill(conn, VECTORS[:rows])
    indexes.build(conn, "geoid_states")
    assert recall.measure(conn, "geoid_states", k=k).recall == 1


def test_ties_are_no_misses(conn: Connection) -> None:
    fill(conn, np.repeat(VECTORS[:2], 100, axis=0))
    indexes.build(conn, "geoid_states")
    measured = recall.measure(conn, "geoid_states", queries=[VECTORS[0], VECTORS[1]], k=5)
    assert measured.recall == 1


def test_embeddings_are_measured_and_tuned_too(conn: Connection) -> None:
    embeddings.insert_many(
        conn, [embeddings.NewEmbedding(text_content=str(n), embedding=one) for n, one in enumerate(VECTORS[:300])]
    )
    index = indexes.build(conn, "semantic_embeddings")
    settings = recall.tune(conn, "semantic_embeddings", target=0.9, sample=20)
    assert [(one.index, one.target) for one in settings] == [(index.name, 0.9)] * 2
    assert recall.measure(conn, "semantic_embeddings", sample=10).index == index.name


def test_the_interval_is_wilsons_where_shares_are_independent() -> None:
    low, high = measures.interval([1.0] * 90 + [0.0] * 10, 1)
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) for p = 0.9, n = 100, z = 1.959964
    assert (low, high) == pytest.approx((0.825634, 0.944771), abs=1e-6)


def test_neighbours_that_are_missed_together_widen_the_interval() -> None:
    together = measures.interval([1.0] * 90 + [0.0] * 10, 10)
    apart = measures.interval([0.9] * 100, 10)
    assert together == pytest.approx((0.825634, 0.944771), abs=1e-6)
    assert together[0] < apart[0] < 0.9 < apart[1] < together[1]


def test_a_recall_says_how_the_queries_are_spread() -> None:
    shares = [0.2] * 2 + [0.7] * 9 + [0.8] * 9 + [1.0] * 180
    measured = measures.summary(shares, 10, None, None)
    assert (measured.p1, measured.p10, measured.poor) == (0.2, 0.8, 11 / 200)


@given(st.lists(st.integers(0, 10).map(lambda tenths: tenths / 10), min_size=1, max_size=300))
def test_the_percentiles_are_shares_that_so_many_queries_reach(shares: list[float]) -> None:
    measured = measures.summary(shares, 10, None, None)
    ordered = sorted(shares)
    assert measured.p1 == ordered[math.floor(0.01 * (len(shares) - 1))]
    assert measured.p10 == ordered[math.floor(0.1 * (len(shares) - 1))]
    assert measured.p1 <= measured.p10
    assert measured.poor == pytest.approx(sum(share < 0.8 for share in shares) / len(shares))


def test_a_promise_is_of_the_mean_and_of_the_worst() -> None:
    promise = measures.Promise.of(0.95, 0.8, made=False)
    good, poor = [1.0] * 500, [0.7] * 6
    assert promise.is_kept(good, 10, 500) is True
    assert promise.is_kept([*good[:495], *poor[:5]], 10, 500) is True  # 1 %
    assert promise.is_kept([*good[:494], *poor], 10, 500) is False
    assert promise.is_kept(good[:200], 10, 500) is None
    assert promise.is_kept([*poor, *good[:194]], 10, 500) is False, "more queries can't make it good"
    assert promise.is_kept([0.8] * 200, 10, 500) is False, "by the mean"
    alone = measures.Promise.of(0.95, 0, made=False)
    assert alone.is_kept([*good[:194], *poor], 10, 500) is True
    made = measures.Promise.of(0.95, 0.8, made=True)
    assert made.is_kept([*good[:499], *poor[:1]], 10, 500) is True
    assert made.is_kept([*good[:498], *poor[:2]], 10, 500) is False


def test_tune_keeps_the_worst_too(conn: Connection) -> None:
    """Some queries are far from all rows: they find less than others do."""
    fill(conn, VECTORS)
    indexes.build(conn, "geoid_states", precision="full", m=4, ef_construction=8)
    queries = [*FRESH, *np.array([unit(number) for number in range(40)])]
    mean, _ = recall.tune(conn, "geoid_states", target=0.8, worst=0, queries=queries)
    both, _ = recall.tune(conn, "geoid_states", target=0.8, queries=queries)
    assert mean.recall.poor > 0.01 >= both.recall.poor
    assert both.setting is not None
    assert mean.setting is not None
    assert both.setting > mean.setting
    measured = recall.measure(conn, "geoid_states", queries=queries, recall=0.8)
    assert (measured.setting, measured.recall, measured.poor) == (both.setting, both.recall.recall, both.recall.poor)


@pytest.mark.parametrize("worst", [-0.1, 1, 2, float("nan"), True, "1"])
def test_a_bad_worst_is_refused(ivfflat: Connection, worst: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^worst: "):
        recall.tune(ivfflat, "geoid_states", worst=worst)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_stays_within_0_and_1(share: float) -> None:
    low, high = measures.interval([share] * 20, 10)
    assert 0 <= low <= share <= high <= 1
    assert 0 < high - low < 0.1


def test_hopeless_data_has_no_setting_and_is_searched_exactly(conn: Connection) -> None:
    vectors = np.random.default_rng(0).standard_normal((1200, 1024)).astype(np.float32)
    fill(conn, vectors)
    indexes.build(conn, "geoid_states", precision="full", m=2, ef_construction=4)
    tuned = recall.tune(conn, "geoid_states", target=0.99999, sample=20)
    assert [one.setting for one in tuned] == [None, None]
    assert geoids.explain(conn, vectors[0], recall=0.99999).index is None
    measured = recall.measure(conn, "geoid_states", sample=20, recall=0.99999)
    assert (measured.recall, measured.index) == (1, None)


def test_tune_again_takes_the_place_of_what_was_tuned(ivfflat: Connection) -> None:
    recall.tune(ivfflat, "geoid_states", target=0.5, worst=0, queries=list(FRESH[:50]))
    (first,) = ivfflat.execute("SELECT setting FROM kimera_recall_settings WHERE k = 10").fetchall()
    recall.tune(ivfflat, "geoid_states", target=0.5, worst=0, queries=[*VECTORS[:50]])
    (again,) = ivfflat.execute("SELECT setting FROM kimera_recall_settings WHERE k = 10").fetchall()
    assert again <= first


def test_tune_asks_no_more_than_it_takes_to_see_a_recall(ivfflat: Connection) -> None:
    queries = [*FRESH, *FRESH, *FRESH]
    clear = recall.tune(ivfflat, "geoid_states", target=0.01, worst=0, queries=queries)
    assert [(one.setting, one.recall.queries) for one in clear] == [(1, 200), (1, 100)]
    # That hardly any query has less than a recall takes all of them to see.
    rare = recall.tune(ivfflat, "geoid_states", target=0.01, worst=0.05, queries=queries)
    assert [one.recall.queries for one in rare] == [600, 100]
    # Not even 6,000 neighbours found of 6,000 are proof of so much.
    unclear = recall.tune(ivfflat, "geoid_states", target=0.9999, queries=queries)[0]
    assert (unclear.setting, unclear.recall.queries, unclear.recall.recall) == (None, 600, 1)


def test_what_an_exact_search_makes_good_is_no_merit_of_a_setting(conn: Connection) -> None:
    fill(conn, VECTORS[:250])
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=100)
    conn.execute("SET LOCAL enable_seqscan = off")
    tuned = recall.tune(conn, "geoid_states", target=0.95, sample=50)
    # With two or three rows a list, so many lists hold the 100 nearest at best.
    for one, least in zip(tuned, (2, 40), strict=True):
        assert one.setting is None or one.setting >= least


def test_tune_finds_the_first_step_that_reaches() -> None:
    for ladder in ([1], [1, 2, 5], list(range(1, 40))):
        for least, first in product(range(ladder[-1] + 2), (0, 1, 3, 39, 50)):
            expected = next((step for step in ladder if step >= least), None)
            bisection = measures.Bisection(ladder, first)
            tried: list[int] = []
            while (step := bisection.step) is not None:
                tried.append(step)
                bisection.answer(step >= least)
            assert bisection.found == expected
            assert len(tried) == len(set(tried)), "a step was tried twice"
            # The widest is tried only where nothing narrower was enough.
            assert expected is None or first >= least or max(tried) <= max(2 * least, least + 4)


def test_what_is_tuned_is_left_to_the_callers_commit(database: str) -> None:
    with closing(psycopg.connect(database)) as conn:
        add_adapters(conn)
        fill(conn, VECTORS[:50])
        name = indexes.build(conn, "geoid_states").name
        conn.commit()
        recall.tune(conn, "geoid_states", target=0.5, sample=5)
        conn.rollback()
        assert indexes.find(conn, name).tuned == {}


@pytest.mark.parametrize("call", [recall.measure, recall.tune])
def test_bad_input_is_refused_by_name(ivfflat: Connection, call: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^table: expected one of geoid_states, semantic_embeddings, got 'other'$"):
        call(ivfflat, "other")
    with pytest.raises(InvalidValue, match=r"^queries: there are none$"):
        call(ivfflat, "geoid_states", queries=[])
    with pytest.raises(VectorError, match=r"^queries\[1\]: "):
        call(ivfflat, "geoid_states", queries=[FRESH[0], FRESH[0] * 0])
    for sample in (0, True, 1.5):
        with pytest.raises(InvalidValue, match=r"^sample: "):
            call(ivfflat, "geoid_states", sample=sample)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_bad_k_is_refused(ivfflat: Connection, k: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^k: "):
        recall.measure(ivfflat, "geoid_states", k=k)


@pytest.mark.parametrize("target", [0, 1, -1, 2, float("nan"), True, "1"])
def test_a_bad_target_is_refused(ivfflat: Connection, target: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^target: "):
        recall.tune(ivfflat, "geoid_states", target=target)


def test_an_empty_table_has_no_recall(conn: Connection) -> None:
    for queries in (None, [FRESH[0]]):
        with pytest.raises(InvalidValue, match=r"^table: geoid_states has no rows$"):
            recall.measure(conn, "geoid_states", queries=queries)


def test_without_an_index_there_is_nothing_to_tune(conn: Connection) -> None:
    fill(conn, VECTORS[:10])
    with pytest.raises(InvalidValue, match=r"^table: geoid_states has no vector index to tune$"):
        recall.tune(conn, "geoid_states")


def test_sqlite_has_nothing_to_measure(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as conn:
        migrate(conn)
        with pytest.raises(UnsupportedByServer, match=r"^SQLite's searches are exact"):
            recall.measure(conn, "geoid_states")
        with pytest.raises(UnsupportedByServer, match=r"^SQLite's searches are exact"):
            recall.tune(conn, "geoid_states")
