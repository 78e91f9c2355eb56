"""Searches by every kind of index: what they find, and how they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_servers import Server, index_kinds
from numpy.typing import NDArray
from psycopg.conninfo import make_conninfo
from reference import clustered, cosines, seconds
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, migrate, open_pool, sql
from kimera_sql.errors import InvalidValue, UnsupportedByServer
from kimera_sql.search import Method, Precision, VectorIndex, indexes, looks, recall
from kimera_sql.sql.postgres import Connection

ROWS: Final = 3000
_MADE: Final = clustered(ROWS + 120)
VECTORS, QUERIES = _MADE[:ROWS], _MADE[ROWS:]
SIMILARITIES: Final = cosines(QUERIES, VECTORS)
# A tag, and each how many rows have it
EVERY: Final = {"half": 2, "tenth": 10, "hundredth": 100, "thousandth": 1000}


@dataclass(frozen=True)
class Searched:
    """An autocommit connection to a database whose states have one index."""

    conn: Connection
    index: VectorIndex

    def setting(self, value: int) -> dict[str, Any]:
        return {"ef_search" if self.index.method == "hnsw" else "probes": value}


@contextmanager
def connected(conninfo: str, *, autocommit: bool = True) -> Iterator[Connection]:
    with psycopg.connect(conninfo, autocommit=autocommit) as conn:
        add_adapters(conn)
        yield conn


def new_geoid(number: int, vector: NDArray[np.float32]) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        state_vector=vector,
        entropy=number / ROWS,
        coherence_factor=0,
        energy_level=0,
        tags=[tag for tag, every in EVERY.items() if number % every == 0],
        timestamp=seconds(number),
        id=UUID(int=number),
    )


@pytest.fixture(scope="module")
def filled(start: Callable[[str], Server]) -> Iterator[Callable[[str], str]]:
    """A function that returns the conninfo of a database with ROWS states on the server of a name."""
    with ExitStack() as stack:

        @cache
        def made(name: str) -> str:
            server = start(name)
            conninfo = server.create(template=server.template)
            stack.callback(server.drop, conninfo)
            with connected(conninfo) as conn:
                geoids.insert_many(conn, map(new_geoid, range(ROWS), VECTORS))
            return conninfo

        yield made


@pytest.fixture(scope="module", params=index_kinds(), ids="-".join)
def searched(request: pytest.FixtureRequest, filled: Callable[[str], str]) -> Iterator[Searched]:
    """Each server with each kind of index in turn, tuned."""
    server, method, precision = request.param
    with connected(filled(server)) as conn:
        index = indexes.build(conn, "geoid_states", method=method, precision=precision)
        recall.tune(conn, "geoid_states", target=0.95, sample=100)
        yield Searched(conn, index)
        indexes.drop(conn, index.name)


@pytest.fixture
def conn(pg_conn: Connection) -> Connection:
    return pg_conn


def numbers(hits: list[geoids.Hit]) -> list[int]:
    return [hit.geoid.id.int for hit in hits]


def share(hits: list[geoids.Hit], query: int, k: int, every: int = 1) -> float:
    """The share of the *k* nearest to a query among each *every*th row that *hits* are; ties count."""
    worst = np.sort(SIMILARITIES[query, ::every])[-k:][0]
    return float(
        sum(SIMILARITIES[query, number] >= worst - 1e-6 for number in set(numbers(hits))) / min(k, ROWS // every)
    )


def test_the_servers_plan_uses_the_index(searched: Searched) -> None:
    said = geoids.explain(searched.conn, QUERIES[0], **searched.setting(20))
    assert (said.index, said.used) == (searched.index.name, True)
    assert searched.index.name in said.plan
    assert "BUT" not in str(said)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_similarities_are_exact_and_in_order(searched: Searched, k: int) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], k)
    found = [hit.similarity for hit in hits]
    assert found == sorted(found, reverse=True)
    np.testing.assert_allclose(found, SIMILARITIES[0, numbers(hits)], rtol=0, atol=1e-6)


def test_vectors_come_along_where_asked_for(searched: Searched) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], 3, with_vectors=True)
    for hit in hits:
        np.testing.assert_array_equal(hit.vector, VECTORS[hit.geoid.id.int])


def test_an_index_that_is_not_tuned_yet_is_searched_with_care(searched: Searched) -> None:
    with tuned(searched.conn, searched.index):
        shares = [share(geoids.similar(searched.conn, query), number, 10) for number, query in enumerate(QUERIES)]
    assert np.mean(shares) >= 0.95


def test_exact_finds_the_very_nearest(searched: Searched) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], 50, exact=True)
    assert share(hits, 0, 50) == 1
    assert geoids.explain(searched.conn, QUERIES[0], exact=True).index is None


@pytest.mark.parametrize("k", [1, 150, 500, 501, ROWS - 1, ROWS, 10_000])
def test_k_rows_come_back_whatever_the_setting(searched: Searched, k: int) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], k, **searched.setting(1))
    assert len(set(numbers(hits))) == len(hits) == min(k, ROWS)


@pytest.mark.parametrize("tag", EVERY)
@pytest.mark.parametrize("setting", [1, None])
def test_k_rows_come_back_where_filters_leave_as_many(searched: Searched, tag: str, setting: int | None) -> None:
    given = {} if setting is None else searched.setting(setting)
    hits = geoids.similar(searched.conn, QUERIES[0], 40, tags_all=[tag], **given)
    assert all(number % EVERY[tag] == 0 for number in numbers(hits))
    assert len(set(numbers(hits))) == len(hits) == min(40, ROWS // EVERY[tag])


@pytest.mark.parametrize("tag", EVERY)
def test_filters_keep_recall(searched: Searched, tag: str) -> None:
    shares = [
        share(geoids.similar(searched.conn, query, tags_any=[tag, "none"]), number, 10, EVERY[tag])
        for number, query in enumerate(QUERIES)
    ]
    assert np.mean(shares) >= 0.95


def test_wide_filters_with_which_the_index_serves_keep_recall(searched: Searched) -> None:
    wide: geoids.Filters = {"entropy": (0, None)}
    assert geoids.explain(searched.conn, QUERIES[0], **wide).index
    shares = [share(geoids.similar(searched.conn, query, **wide), number, 10) for number, query in enumerate(QUERIES)]
    assert np.mean(shares) >= 0.95


def test_wide_filters_go_to_the_index_and_selective_ones_to_an_exact_search(searched: Searched) -> None:
    wide = geoids.explain(searched.conn, QUERIES[0], entropy=(0.05, None), **searched.setting(20))
    selective = geoids.explain(searched.conn, QUERIES[0], tags_all=["hundredth"], **searched.setting(20))
    assert (wide.index, wide.used) == (searched.index.name, True)
    assert (selective.index, selective.used) == (None, False)
    assert "rows are left to search" in selective.reason


def test_a_setting_that_is_given_is_the_one_that_is_used(searched: Searched) -> None:
    said = geoids.explain(searched.conn, QUERIES[0], **searched.setting(17))
    name = "hnsw.ef_search" if searched.index.method == "hnsw" else "ivfflat.probes"
    besides = {"jit": "off", "enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
    assert said.settings in ({name: "17"}, {name: "17", **besides})
    if searched.index.method == "ivfflat":
        assert len(said.settings) == 4
    assert f"{searched.index.name} with" in said.reason


def test_a_plan_that_is_kept_uses_the_index(searched: Searched) -> None:
    def scans() -> int:
        searched.conn.execute("SELECT pg_stat_force_next_flush()")
        return indexes.find(searched.conn, searched.index.name).scans

    before = scans()
    for query in QUERIES[:12]:
        geoids.similar(searched.conn, query)
    assert scans() == before + 12
    kept = searched.conn.execute(
        "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements "
        "WHERE statement ~ 'geoids.(similar|nearest)_'"
    ).fetchone()
    assert kept
    assert kept[0] > 0
    # A statement that searches by itself leaves it to the server, which plans it anew five times.
    assert kept[1] <= 5


def test_a_kept_plan_gives_way_to_another_index(database: str) -> None:
    with connected(database) as conn:
        geoids.insert_many(conn, map(new_geoid, range(500), VECTORS))
        turns: list[tuple[Method, str]] = [("hnsw", "ef_search"), ("ivfflat", "probes"), ("hnsw", "ef_search")]
        for method, option in turns:
            name = indexes.build(conn, "geoid_states", method=method, precision="full").name
            for query in QUERIES[:12]:
                assert len(geoids.similar(conn, query, **{option: 100})) == 10  # type: ignore[arg-type]
            conn.execute("SELECT pg_stat_force_next_flush()")
            assert indexes.find(conn, name).scans == 12
            indexes.drop(conn, name)


def test_filters_of_which_one_is_remembered_are_told_apart(searched: Searched) -> None:
    for _ in range(2):
        for tag, every in EVERY.items():
            assert len(geoids.similar(searched.conn, QUERIES[0], ROWS, tags_all=[tag])) == ROWS // every
            assert f"some {ROWS // every:,} of" in geoids.explain(searched.conn, QUERIES[0], tags_all=[tag]).reason


def test_only_so_many_filters_are_remembered(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_MOST_REMEMBERED", 2)
    for most in (0.2, 0.4, 0.6, 0.8, 0.2):
        hits = geoids.similar(searched.conn, QUERIES[0], 5, entropy=(None, most))
        assert len(hits) == 5
        assert all(hit.geoid.entropy <= most for hit in hits)


def test_a_wider_setting_finds_no_less(searched: Searched) -> None:
    found = [
        np.mean([share(geoids.similar(searched.conn, q, **searched.setting(at)), n, 10) for n, q in enumerate(QUERIES)])
        for at in (10, 100)
    ]
    assert found[0] <= found[1]


def test_a_search_is_by_the_setting_that_was_tuned(searched: Searched) -> None:
    index = indexes.find(searched.conn, searched.index.name)
    name = "hnsw.ef_search" if index.method == "hnsw" else "ivfflat.probes"
    assert geoids.explain(searched.conn, QUERIES[0]).settings[name] == str(index.tuned[10, 0.95])


@contextmanager
def tuned(conn: Connection, index: VectorIndex, *settings: tuple[int, float, int | None]) -> Iterator[None]:
    """Let the block see what recall.tune may have stored."""
    with conn.transaction(force_rollback=True):
        sql.Queries("indexes").forget_settings.execute(conn, index_name=index.name)
        for k, target, setting in settings:
            sql.Queries("recall").store.execute(conn, index_name=index.name, k=k, target=target, setting=setting)
        looks.forget(conn)
        yield
    looks.forget(conn)


def test_a_recall_that_no_setting_reaches_is_searched_exactly(searched: Searched) -> None:
    with tuned(searched.conn, searched.index, (10, 0.95, 20), (10, 0.99, None)):
        assert geoids.explain(searched.conn, QUERIES[0]).used
        said = geoids.explain(searched.conn, QUERIES[0], recall=0.97)
        assert said.reason == f"exactly: no setting of {searched.index.name} reaches a recall of 0.97"
        assert share(geoids.similar(searched.conn, QUERIES[0], recall=0.97), 0, 10) == 1
        assert geoids.explain(searched.conn, QUERIES[0], recall=0.999).index is None


def test_a_recall_of_1_is_searched_exactly(searched: Searched) -> None:
    assert geoids.explain(searched.conn, QUERIES[0], recall=1).index is None


def test_the_cheapest_setting_that_was_tuned_for_the_recall_is_used(searched: Searched) -> None:
    def setting(k: int, recall: float | None = None) -> int:
        return int(next(iter(geoids.explain(searched.conn, QUERIES[0], k, recall=recall).settings.values())))

    with tuned(searched.conn, searched.index, (10, 0.95, 21), (10, 0.99, 42), (100, 0.95, 63), (100, 0.99, 84)):
        assert (setting(1), setting(10), setting(11), setting(100)) == (21, 21, 63, 63)
        assert (setting(10, 0.5), setting(10, 0.96), setting(10, 0.99), setting(50, 0.98)) == (21, 42, 42, 84)
        assert setting(200) == (126 if searched.index.method == "hnsw" else 63)
        assert setting(10, 0.995) >= 84


@pytest.mark.parametrize("tag", [None, "half", "thousandth"])
@pytest.mark.parametrize("k", [10, 600])
def test_many_are_each_what_one_is(searched: Searched, tag: str | None, k: int) -> None:
    filters: geoids.Filters = {"tags_all": [tag]} if tag else {}
    queries = QUERIES[:8]
    expected = [geoids.similar(searched.conn, query, k, **filters) for query in queries]
    assert geoids.similar_many(searched.conn, queries, k, **filters) == expected
    with searched.conn.transaction():
        assert geoids.similar_many(searched.conn, queries, k, **filters) == expected


def test_none_asked_is_none_found(searched: Searched) -> None:
    assert geoids.similar_many(searched.conn, []) == []


def test_the_states_like_a_state_are_without_it(searched: Searched) -> None:
    hits = geoids.similar_to(searched.conn, UUID(int=5), 20)
    expected = cosines(VECTORS[5:6], VECTORS)[0]
    assert 5 not in numbers(hits)
    np.testing.assert_allclose([hit.similarity for hit in hits], expected[numbers(hits)], rtol=0, atol=1e-6)
    assert len(set(numbers(hits)) & {int(number) for number in np.argsort(-expected)[1:21]}) >= 15


def marginal(query: int, k: int, diversity: float) -> list[int]:
    """The rows by maximal marginal relevance among the 5 *k* nearest, in plain Python."""
    among = list(np.argsort(-SIMILARITIES[query])[: 5 * k])
    between = cosines(VECTORS[among], VECTORS[among])
    taken = [0]
    while len(taken) < k:
        rest = [place for place in range(len(among)) if place not in taken]
        worth = {
            place: (1 - diversity) * SIMILARITIES[query, among[place]]
            - diversity * max(between[place, one] for one in taken)
            for place in rest
        }
        taken.append(max(rest, key=lambda place: worth[place]))
    return [int(among[place]) for place in taken]


@pytest.mark.parametrize("diversity", [0.5, 1])
def test_diversity_is_maximal_marginal_relevance(searched: Searched, diversity: float) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], 8, diversity=diversity, exact=True)
    assert numbers(hits) == marginal(0, 8, diversity)
    assert {hit.vector for hit in hits} == {None}


def test_diversity_chooses_among_what_the_index_finds(searched: Searched) -> None:
    hits = geoids.similar(searched.conn, QUERIES[0], 8, diversity=0.5, with_vectors=True)
    plain = geoids.similar(searched.conn, QUERIES[0], 40)
    assert hits[0].geoid == plain[0].geoid
    assert len(set(numbers(hits))) == 8
    assert set(numbers(hits)) <= set(numbers(plain))
    np.testing.assert_array_equal(hits[1].vector, VECTORS[hits[1].geoid.id.int])


def test_no_diversity_is_a_plain_search(searched: Searched) -> None:
    expected = geoids.similar(searched.conn, QUERIES[0], 8)
    assert geoids.similar(searched.conn, QUERIES[0], 8, diversity=0) == expected


def test_two_connections_search_at_once(searched: Searched) -> None:
    expected = [geoids.similar(searched.conn, query, 10) for query in QUERIES]

    def search_all(_: int) -> list[list[geoids.Hit]]:
        info = searched.conn.info
        with connected(make_conninfo(info.dsn, password=info.password)) as conn:
            return [geoids.similar(conn, query, 10) for query in QUERIES]

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(search_all, range(2))) == [expected, expected]


def test_the_index_that_serves_best_is_chosen(database: str) -> None:
    with connected(database) as conn:
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        built = []
        kinds: list[tuple[Method, Precision]] = [
            ("ivfflat", "full"),
            ("hnsw", "binary"),
            ("hnsw", "full"),
            ("hnsw", "half"),
        ]
        for method, precision in kinds:
            if precision == "full" or conn.execute("SELECT to_regtype('halfvec')").fetchone() != (None,):
                built.append(indexes.build(conn, "geoid_states", method=method, precision=precision).name)
        for name in reversed(built):
            said = geoids.explain(conn, QUERIES[0])
            assert said.index == name
            indexes.drop(conn, name)
        assert geoids.explain(conn, QUERIES[0]).index is None


def test_filters_work_with_both_methods_indexes_there(database: str) -> None:
    with connected(database) as conn:
        geoids.insert_many(conn, map(new_geoid, range(500), VECTORS))
        for method in ("hnsw", "ivfflat"):
            indexes.build(conn, "geoid_states", method=method, precision="full")
        hits = geoids.similar(conn, QUERIES[0], 10, ef_search=100, entropy=(0, None))
        expected = np.argsort(-SIMILARITIES[0, :500])[:10]
        assert len(set(numbers(hits)) & set(expected)) >= 8


def test_the_look_at_the_catalogue_holds_for_a_while(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(database) as conn, connected(database) as other:
        monkeypatch.setattr(looks, "_FRESH_WITHOUT", 60)
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        assert geoids.explain(conn, QUERIES[0]).index is None
        # As another process would
        other.execute("CREATE INDEX another ON geoid_states USING hnsw (state_vector vector_cosine_ops)")
        assert geoids.explain(conn, QUERIES[0]).index is None
        monkeypatch.setattr(looks, "_FRESH_WITHOUT", 0)
        assert geoids.explain(conn, QUERIES[0]).index == "another"
        other.execute("DROP INDEX another")
        assert geoids.explain(conn, QUERIES[0]).index == "another"
        monkeypatch.setattr(looks, "_FRESH", 0)
        assert geoids.explain(conn, QUERIES[0]).index is None


@pytest.mark.parametrize("filters", [{}, {"entropy": (0, None)}])
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_a_search_finds_that_its_index_was_dropped_or_rebuilt(
    database: str, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], method: Method
) -> None:
    """By another process; in a transaction too, whose settings stay as they are."""
    monkeypatch.setattr(looks, "_FRESH", 60)
    monkeypatch.setattr("kimera_sql.search.plan._exact_is_cheaper", lambda *_: False)
    with connected(database) as conn, connected(database) as other:
        geoids.insert_many(conn, map(new_geoid, range(500), VECTORS))
        name = indexes.build(conn, "geoid_states", method=method, precision="full").name
        conn.execute("SET random_page_cost = 0.1")
        conn.execute("SET hnsw.ef_search = 77")
        expected = geoids.similar(conn, QUERIES[0], exact=True)

        def filenode() -> int:
            (index,) = looks.last(conn, "geoid_states").indexes  # type: ignore[union-attr]
            return index.filenode

        assert len(geoids.similar(conn, QUERIES[0], **filters)) == 10
        before = filenode()
        assert len(geoids.similar(conn, QUERIES[0], **filters)) == 10
        assert filenode() == before
        other.execute(f"REINDEX INDEX {name}")
        assert len(geoids.similar(conn, QUERIES[0], **filters)) == 10
        assert filenode() != before
        other.execute(f"DROP INDEX {name}")
        with conn.transaction():
            assert geoids.similar(conn, QUERIES[0], **filters) == expected
            assert conn.execute("SELECT current_setting('hnsw.ef_search')").fetchone() == ("77",)
        assert geoids.explain(conn, QUERIES[0]).index is None


def test_an_index_of_this_process_is_seen_by_all_its_connections_at_once(database: str) -> None:
    with connected(database) as conn, connected(database) as other:
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        assert geoids.explain(conn, QUERIES[0]).index is None
        name = indexes.build(other, "geoid_states").name
        assert geoids.explain(conn, QUERIES[0]).index == name
        indexes.drop(other, name)
        assert geoids.explain(conn, QUERIES[0]).index is None


def test_an_index_that_is_not_committed_is_seen_by_its_own_connection_alone(database: str) -> None:
    with open_pool(database) as pool, pool.connection() as conn, pool.connection() as other:
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        conn.commit()
        name = indexes.build(conn, "geoid_states").name
        assert geoids.explain(conn, QUERIES[0]).index == name
        assert geoids.explain(other, QUERIES[0]).index is None
        conn.commit()
        assert geoids.explain(other, QUERIES[0]).index == name
        other.rollback()
        indexes.drop(conn, name)
        assert geoids.explain(conn, QUERIES[0]).index is None
        conn.rollback()
        assert geoids.explain(conn, QUERIES[0]).index == name


def test_a_search_survives_an_index_that_another_dropped(database: str) -> None:
    with connected(database) as conn, connected(database) as other:
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        name = indexes.build(conn, "geoid_states").name
        expected = geoids.similar(conn, QUERIES[0], 10, exact=True)
        other.execute(f"DROP INDEX {name}".encode())  # as another process would
        said = geoids.explain(conn, QUERIES[0])
        assert (said.index, said.used) == (name, False)
        assert "BUT the server's plan does not use this index" in str(said)
        assert geoids.similar(conn, QUERIES[0], 10) == expected


def test_the_own_build_and_drop_are_seen_at_once(conn: Connection) -> None:
    geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
    assert "geoid_states has no vector index" in geoids.explain(conn, QUERIES[0]).reason
    name = indexes.build(conn, "geoid_states").name
    assert geoids.explain(conn, QUERIES[0]).index == name
    indexes.drop(conn, name)
    assert geoids.explain(conn, QUERIES[0]).index is None


def test_an_empty_table_and_a_single_row_are_searched(conn: Connection) -> None:
    assert geoids.similar(conn, QUERIES[0]) == []
    assert geoids.similar(conn, QUERIES[0], diversity=0.5) == []
    geoids.insert(conn, new_geoid(7, VECTORS[7]))
    indexes.build(conn, "geoid_states")
    assert numbers(geoids.similar(conn, QUERIES[0])) == [7]
    geoids.delete(conn, UUID(int=7))
    assert geoids.similar(conn, QUERIES[0]) == []


def test_an_error_amid_many_leaves_the_connection_usable(database: str) -> None:
    with connected(database) as conn:
        geoids.insert_many(conn, map(new_geoid, range(50), VECTORS))
        indexes.build(conn, "geoid_states")
        expected = geoids.similar_many(conn, QUERIES[:3])
        conn.execute("ALTER TABLE geoid_states RENAME COLUMN tags TO other")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            geoids.similar_many(conn, QUERIES[:3])
        conn.execute("ALTER TABLE geoid_states RENAME COLUMN other TO tags")
        assert geoids.similar_many(conn, QUERIES[:3]) == expected


BAD_OPTIONS: list[dict[str, Any]] = [
    *({"probes": bad} for bad in (0, 32769, 1.0, True, "1")),
    *({"ef_search": bad} for bad in (0, 1001, 1.0, True, "1")),
    *({"recall": bad} for bad in (0, -0.1, 1.01, float("nan"), True, "1")),
    *({"k": bad} for bad in (0, True, 2.0)),
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_by_name(conn: Connection, options: dict[str, Any]) -> None:
    (name,) = options
    for entity in (geoids, embeddings):
        for call, asked in ((entity.similar, unit(0)), (entity.similar_many, [unit(0)]), (entity.explain, unit(0))):
            with pytest.raises(InvalidValue, match=f"^{name}: "):
                call(conn, asked, **options)


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan"), True, "1", None])
def test_a_bad_diversity_is_refused(conn: Connection, diversity: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^diversity: "):
        geoids.similar(conn, unit(0), diversity=diversity)


@pytest.fixture
def texts(conn: Connection) -> Connection:
    """A connection to texts of which the even ones are of sport, with a word for the number."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    embeddings.insert_many(
        conn,
        [
            embeddings.NewEmbedding(
                text_content=f"{'running fast' if number % 2 == 0 else 'sitting still'} " + "far " * number + word,
                embedding=VECTORS[number],
                source="low" if number < 5 else "high",
                id=UUID(int=number),
            )
            for number, word in enumerate(words)
        ],
    )
    return conn


def fused(hits: list[embeddings.Fused]) -> dict[int, tuple[int | None, int | None]]:
    return {hit.embedding.id.int: (hit.by_words, hit.by_vector) for hit in hits}


def test_hybrid_fuses_the_ranks_of_words_and_vectors(texts: Connection) -> None:
    hits = embeddings.hybrid(texts, "runs", QUERIES[0], 10)
    nearest = [int(number) for number in np.argsort(-SIMILARITIES[0, :10])]
    ranked = fused(hits)
    by_words = sorted((rank, number) for number, (rank, _) in ranked.items() if rank)
    assert by_words == [(place + 1, 2 * place) for place in range(5)]
    assert {number: rank for number, (_, rank) in ranked.items()} == {n: place + 1 for place, n in enumerate(nearest)}
    scores = {n: sum(1 / (60 + rank) for rank in ranks if rank) for n, ranks in ranked.items()}
    assert [hit.embedding.id.int for hit in hits] == sorted(scores, key=lambda n: (-scores[n], n))
    assert [hit.score for hit in hits] == pytest.approx([scores[n] for n in ranked])


def test_hybrid_gives_k(texts: Connection) -> None:
    assert len(embeddings.hybrid(texts, "running", QUERIES[0], 3)) == 3


def test_hybrid_finds_by_words_what_is_far_by_vector(texts: Connection) -> None:
    furthest = int(np.argmin(SIMILARITIES[0, :10]))
    word = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[furthest]
    (hit,) = embeddings.hybrid(texts, word, VECTORS[furthest], 1)
    assert (hit.embedding.id.int, hit.by_words, hit.by_vector) == (furthest, 1, 1)
    assert fused(embeddings.hybrid(texts, word, QUERIES[0], 3))[furthest][0] == 1


@pytest.mark.parametrize(
    "text", ["", "   ", "absent", "the", "'", '"', "&|!():*<->", "-", '"running', "a\\'; DROP TABLE x"]
)
def test_hybrid_without_words_that_match_goes_by_the_vector(texts: Connection, text: str) -> None:
    ranked = fused(embeddings.hybrid(texts, text, QUERIES[0], 5))
    if text != '"running':
        assert list(ranked) == [int(number) for number in np.argsort(-SIMILARITIES[0, :10])[:5]]
    assert len(ranked) == 5


def test_hybrid_knows_phrases_and_exclusions(texts: Connection) -> None:
    def matching(text: str) -> set[int]:
        return {number for number, (rank, _) in fused(embeddings.hybrid(texts, text, QUERIES[0])).items() if rank}

    assert matching('"running fast"') == {0, 2, 4, 6, 8}
    assert matching('"fast running"') == set()
    assert matching("running -two") == {0, 4, 6, 8}
    assert matching("two or three") == {2, 3}
    assert matching("running three") == set()


def test_hybrid_narrows_both_rankings_by_filters(texts: Connection) -> None:
    ranked = fused(embeddings.hybrid(texts, "running", QUERIES[0], source="low"))
    assert set(ranked) == {0, 1, 2, 3, 4}
    assert {number for number, (rank, _) in ranked.items() if rank} == {0, 2, 4}


@pytest.mark.parametrize("text", ["a\0b", "\ud800", b"a", None])
def test_hybrid_refuses_what_is_no_text(texts: Connection, text: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^text: "):
        embeddings.hybrid(texts, text, QUERIES[0])


@pytest.mark.parametrize("indexed", [True, False])
def test_hybrid_is_one_round_trip(
    texts: Connection, tmp_path: Path, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "_FRESH", 60)
    monkeypatch.setattr(looks, "_FRESH_WITHOUT", 60)
    if indexed:
        indexes.build(texts, "semantic_embeddings")
    for source in (None, "high"):
        expected = embeddings.hybrid(texts, "running", QUERIES[0], 1, source=source)  # the catalogue is known now
        with (tmp_path / "trace").open("w") as trace:
            texts.pgconn.trace(trace.fileno())
            assert embeddings.hybrid(texts, "running", QUERIES[0], 1, source=source) == expected
            texts.pgconn.untrace()
        assert (tmp_path / "trace").read_text().count("\tSync") == 1


def test_words_are_found_by_their_index(texts: Connection) -> None:
    statement = sql.statements("postgres", "embeddings")["matching_words"].explained()
    parameters = {**dict.fromkeys(statement.parameters), "words": "running", "limit": 5}
    texts.execute("SET LOCAL enable_seqscan = off")
    plan = psycopg.Cursor(texts).execute(statement.text, parameters).fetchall()
    assert "idx_embedding_words" in str(plan)


def test_sqlite_searches_exactly_and_refuses_what_it_lacks(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as conn:
        migrate(conn)
        geoids.insert_many(conn, map(new_geoid, range(100), VECTORS))
        hits = geoids.similar_many(conn, QUERIES[:2], 10, ef_search=1, recall=0.5)
        assert [numbers(one) for one in hits] == [list(np.argsort(-SIMILARITIES[n, :100])[:10]) for n in range(2)]
        assert len(geoids.similar(conn, QUERIES[0], 5, diversity=1)) == 5
        with pytest.raises(UnsupportedByServer, match=r"^SQLite has no plans"):
            geoids.explain(conn, QUERIES[0])
        with pytest.raises(UnsupportedByServer, match=r"^full-text search needs PostgreSQL"):
            embeddings.hybrid(conn, "text", QUERIES[0])
