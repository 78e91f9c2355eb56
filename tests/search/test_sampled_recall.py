"""The recall of what callers really search for: tuned, measured against numpy, recorded, reported and examined."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import psycopg
import pytest
from commands import run
from fix_connections import BOTH_TWINS, rolled_back
from fix_monitoring import keep, only
from numpy.typing import NDArray
from reference import cosines, shares_found
from strategies import unit

from kimera_sql import add_adapters, geoids
from kimera_sql.errors import InvalidValue
from kimera_sql.ops import doctor, monitoring
from kimera_sql.search import indexes, looks, recall
from kimera_sql.sql import Connection
from kimera_sql.vectors import as_vector

pytestmark = pytest.mark.ends

CENTRES: Final = np.array([unit(seed) for seed in range(30)])

VECTORS: Final = np.repeat(CENTRES, 20, axis=0) + np.float32(0.3) * np.array([unit(one) for one in range(1000, 1600)])
"""States in tight clusters: the neighbours of one, and of a query that is made from it, are all in one list."""

REAL: Final = [
    as_vector(np.random.default_rng(seed).choice(CENTRES, 25, replace=False).sum(axis=0)) for seed in range(150)
]
"""What is searched for: places between clusters, with neighbours in several lists."""


@pytest.fixture(params=BOTH_TWINS)
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        yield conn


@pytest.fixture
def ivfflat(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection to 600 states with an ivfflat index of 30 lists."""
    fill(conn)
    conn.execute("SET LOCAL enable_seqscan = off")
    return conn


@pytest.fixture
def committed(database: str) -> Iterator[psycopg.Connection[Any]]:
    """The same, in autocommit and in a database of the test's own."""
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill(conn)
        conn.execute("SET enable_seqscan = off")
        yield conn


def fill(conn: psycopg.Connection[Any]) -> None:
    states = [geoids.NewGeoid(state_vector=one, entropy=0, coherence_factor=0, energy_level=0) for one in VECTORS]
    geoids.insert_many(conn, states)
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=30)


def found(conn: Connection, queries: list[NDArray[np.float32]], k: int, **options: Any) -> float:
    """The recall of searches for *queries*, by numpy."""
    hits = [[hit.similarity for hit in geoids.similar(conn, query, k, **options)] for query in queries]
    return float(np.mean(shares_found(hits, cosines(np.array(queries), VECTORS), k)))


def distrust(conn: psycopg.Connection[Any], probes: int) -> None:
    """Have the searches of states use so few probes, as if that had been measured once to be enough."""
    conn.execute(
        "INSERT INTO kimera_recall_settings (index_name, k, target, setting, filenode) "
        "SELECT 'idx_geoid_vector', k, 0.95, %s, pg_relation_filenode('idx_geoid_vector') FROM unnest(%s::int[]) AS k",
        [probes, [10, 100]],
    )
    looks.forget(conn)


def test_tune_goes_by_what_callers_search_for(ivfflat: psycopg.Connection[Any]) -> None:
    # Made queries need 1 to 3 probes here, depending on the training, with which these have a recall of 0.3 to 0.94.
    assert recall.measure(ivfflat, "geoid_states", probes=1).recall - found(ivfflat, REAL, 10, probes=1) > 0.1
    keep(ivfflat, *REAL)
    ten, hundred = recall.tune(ivfflat, "geoid_states", target=0.95)
    assert (ten.recall.queries, hundred.recall.queries) == (150, 100)
    assert ten.setting is not None
    assert ten.setting > 1
    assert found(ivfflat, REAL, 10) == pytest.approx(ten.recall.recall, abs=1e-9)
    assert ten.recall.low >= 0.95
    recorded = only(monitoring.sampled(ivfflat), table="geoid_states")
    assert (recorded.k, recorded.queries, recorded.recall) == (10, 150, ten.recall.recall)
    assert (recorded.low, recorded.high) == (ten.recall.low, ten.recall.high)


def test_tune_takes_the_newest_and_no_more_than_asked_for(ivfflat: psycopg.Connection[Any]) -> None:
    keep(ivfflat, *REAL)
    assert recall.tune(ivfflat, "geoid_states", target=0.5, sample=30)[0].recall.queries == 30
    with pytest.raises(InvalidValue, match=r"^queries: there are none$"):
        recall.tune(ivfflat, "geoid_states", queries=[])
    wrong: Any
    for wrong in (0, True, 1.5):
        with pytest.raises(InvalidValue, match=r"^sample: "):
            recall.tune(ivfflat, "geoid_states", sample=wrong)


def test_fewer_than_100_different_searches_say_too_little(ivfflat: psycopg.Connection[Any]) -> None:
    keep(ivfflat, *REAL[:99], *REAL[:99])
    assert recall.tune(ivfflat, "geoid_states", target=0.5, sample=40)[0].recall.queries == 40
    with pytest.raises(
        InvalidValue,
        match=r"^table: 99 different searches of geoid_states were sampled, 100 are needed; set KIMERA_SEARCH_SAMPLE",
    ):
        recall.check(ivfflat, "geoid_states")
    assert only(monitoring.sampled(ivfflat), table="geoid_states").recall is None
    keep_one_more = "UPDATE kimera_sampled_searches SET query = %b WHERE place = 150"
    ivfflat.execute(keep_one_more, [REAL[99]])
    assert recall.check(ivfflat, "geoid_states").queries == 100


def test_ones_own_queries_come_before_the_sample(ivfflat: psycopg.Connection[Any]) -> None:
    keep(ivfflat, *REAL)
    assert recall.tune(ivfflat, "geoid_states", target=0.5, queries=REAL[:20])[0].recall.queries == 20
    assert recall.measure(ivfflat, "geoid_states", sample=20).queries == 20
    assert only(monitoring.sampled(ivfflat), table="geoid_states").recall is None


def test_what_was_sampled_is_given_newest_first_and_once(ivfflat: psycopg.Connection[Any]) -> None:
    assert recall.sampled(ivfflat, "geoid_states") == []
    keep(ivfflat, *REAL[:5], REAL[0])
    age = "UPDATE kimera_sampled_searches SET sampled_at = sampled_at - make_interval(days => 10 - place)"
    ivfflat.execute(age)
    queries = recall.sampled(ivfflat, "geoid_states")
    assert np.array_equal(queries, [REAL[seed] for seed in (0, 4, 3, 2, 1)])
    assert np.array_equal(recall.sampled(ivfflat, "geoid_states", limit=2), [REAL[0], REAL[4]])
    assert recall.sampled(ivfflat, "semantic_embeddings") == []
    assert recall.measure(ivfflat, "geoid_states", queries=queries).queries == 5
    wrong: Any
    for wrong in (0, True, 1.5):
        with pytest.raises(InvalidValue, match=r"^limit: "):
            recall.sampled(ivfflat, "geoid_states", limit=wrong)
    with pytest.raises(InvalidValue, match=r"^table: expected one of "):
        recall.sampled(ivfflat, "other")


@pytest.mark.parametrize(("k", "counts"), [(3, 3), (200, 100)])
def test_check_says_what_numpy_says(ivfflat: psycopg.Connection[Any], k: int, counts: int) -> None:
    distrust(ivfflat, 1)
    keep(ivfflat, *REAL, k=k)
    ivfflat.execute("UPDATE kimera_sampled_searches SET k = 5 WHERE place < 70")
    measured = recall.check(ivfflat, "geoid_states")
    assert (measured.k, measured.queries, measured.setting) == (counts, 150, 1)
    assert measured.recall == pytest.approx(found(ivfflat, REAL, counts), abs=1e-9)
    assert measured.low < measured.recall <= measured.high
    assert (measured.recall < 1) == (k == 3)  # a list has too few rows for 100, so such a search is completed
    recorded = only(monitoring.sampled(ivfflat), table="geoid_states")
    assert (recorded.searches, recorded.k, recorded.queries) == (150, counts, 150)
    assert (recorded.recall, recorded.low, recorded.high) == (measured.recall, measured.low, measured.high)


def test_a_record_is_true_of_the_index_that_was_measured(committed: psycopg.Connection[Any]) -> None:
    def record() -> monitoring.SampledSearches:
        return only(monitoring.sampled(committed), table="geoid_states")

    keep(committed, *REAL)
    assert record().recall is None
    measured = recall.check(committed, "geoid_states")
    assert (measured.index, measured.recall) == ("idx_geoid_vector", record().recall)
    committed.execute("REINDEX INDEX idx_geoid_vector")
    assert (record().searches, record().recall, record().measured_at) == (150, None, None)
    recall.check(committed, "geoid_states")
    indexes.drop(committed, "idx_geoid_vector")
    assert record().recall is None
    # Without an index searches are exact, and that is what is measured.
    measured = recall.check(committed, "geoid_states")
    assert (measured.index, measured.recall, record().recall) == (None, 1, 1)
    committed.execute("DELETE FROM kimera_sampled_searches")
    assert monitoring.sampled(committed) == []


def about(conn: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """What the doctor finds about sampled searches: how grave it is, and what to do."""
    findings = [one for one in doctor.examine(conn) if one.subject == "searches of geoid_states"]
    return [(one.severity, one.advice) for one in findings]


@pytest.mark.slow
def test_the_doctor_says_so_until_it_is_mended(database: str, committed: psycopg.Connection[Any]) -> None:
    def index(*arguments: str) -> tuple[int, str]:
        ran = run("index", *arguments, DATABASE_URL=database)
        assert ran.stderr == ""
        return ran.returncode, ran.stdout

    distrust(committed, 1)
    keep(committed, *REAL[:99])
    assert about(committed) == []
    keep_last = "INSERT INTO kimera_sampled_searches (table_name, place, query, k) VALUES ('geoid_states', 99, %b, 10)"
    committed.execute(keep_last, [REAL[99]])
    assert about(committed) == [("note", "kimera-sql index check geoid_states")]
    code, said = index("check", "geoid_states")
    assert code == 1
    assert said.startswith("recall 0.")
    assert "at k=10, 100 queries by idx_geoid_vector at 1" in said
    assert about(committed) == [("warning", "kimera-sql index tune geoid_states")]
    assert index("tune", "geoid_states")[0] == 0
    assert about(committed) == []
    code, said = index("check", "geoid_states", "--json")
    assert (code, json.loads(said)["queries"]) == (0, 100)
    committed.execute("UPDATE kimera_sampled_recalls SET measured_at = measured_at - interval '8 days'")
    assert about(committed) == [("note", "kimera-sql index check geoid_states")]


@pytest.mark.slow
def test_too_few_searches_to_check_are_an_error_without_a_traceback(database: str) -> None:
    ran = run("index", "check", "geoid_states", DATABASE_URL=database)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("kimera-sql: table: 0 different searches of geoid_states were sampled, 100 are needed")
