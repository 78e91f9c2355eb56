"""The commands of vector indexes, run as processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_servers import Server, precisions

pytestmark = pytest.mark.slow


def fill(database: str, rows: int) -> None:
    with psycopg.connect(database) as conn:
        conn.execute(
            "INSERT INTO geoid_states (state_vector, entropy, coherence_factor, energy_level)"
            " SELECT (SELECT array_agg(random() - 0.5 + (n + i) * 0) FROM generate_series(1, 1024) AS i)::vector,"
            " 0, 0, 0"
            " FROM generate_series(1, %s) AS n",
            [rows],
        )


def test_index_build_of_an_empty_table_is_an_error(database: str) -> None:
    empty = run("index", "build", "geoid_states", DATABASE_URL=database)
    assert empty.returncode == 1
    assert empty.stderr.startswith("kimera-sql: table: geoid_states is empty; insert rows first")


def test_an_index_is_built_listed_tuned_measured_retrained_and_dropped(database: str) -> None:
    def index(*arguments: str) -> str:
        ran = run("index", *arguments, DATABASE_URL=database)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    assert index("list") == "there are no vector indexes\n"
    fill(database, 50)
    built = index("build", "geoid_states", "--method", "ivfflat", "--precision", "full", "--lists", "5")
    assert built.startswith("built idx_geoid_vector: 50 rows, ")
    assert built.count("\nidx_geoid_vector  recall 0.9") == 4
    listed = index("list")
    assert listed.startswith("idx_geoid_vector  ivfflat full  ")
    assert "valid" in listed
    assert "built from 50 rows" in listed
    assert "0.95 at k=10: " in listed
    tuned = index("tune", "geoid_states", "--target", "0.9")
    assert tuned.count("idx_geoid_vector  recall 0.9 at k=") == 2
    measured = index("recall", "geoid_states", "--k", "3", "--sample", "20")
    assert measured.startswith("recall ")
    assert "at k=3, 20 queries by idx_geoid_vector at " in measured
    (plain,) = json.loads(index("list", "--json"))
    assert (plain["name"], plain["lists"], plain["rows_at_build"]) == ("idx_geoid_vector", 5, 50)
    assert {(one["k"], one["target"]) for one in plain["tuned"]} >= {(10, 0.9), (100, 0.99)}
    assert [one["k"] for one in json.loads(index("tune", "geoid_states", "--target", "0.9", "--json"))] == [10, 100]
    assert json.loads(index("recall", "geoid_states", "--k", "3", "--sample", "20", "--json"))["queries"] == 20
    fill(database, 10)
    assert index("retrain", "idx_geoid_vector").startswith("rebuilt idx_geoid_vector: 60 rows, ")
    assert index("clean") == "there is nothing to clean up\n"
    assert index("drop", "idx_geoid_vector") == "dropped idx_geoid_vector\n"
    assert index("list") == "there are no vector indexes\n"


def test_index_build_of_an_index_that_exists_is_an_error(database: str, server: Server) -> None:
    fill(database, 5)
    precision = "half" if "half" in precisions(server.name) else "full"
    assert run("index", "build", "geoid_states", "--concurrently", DATABASE_URL=database).returncode == 0
    again = run("index", "build", "geoid_states", DATABASE_URL=database)
    assert again.returncode == 1
    assert again.stderr == (
        f'kimera-sql: relation "idx_geoid_vector_hnsw_{precision}" already exists; `kimera-sql index retrain` builds '
        "it anew while it serves, and `index clean` drops one that is unfinished\n"
    )


def test_an_index_that_is_not_there_is_an_error(database: str) -> None:
    for command in ("drop", "retrain"):
        ran = run("index", command, "nothing", DATABASE_URL=database)
        assert (ran.returncode, ran.stderr) == (1, "kimera-sql: no vector index has the name nothing\n")


@pytest.mark.ends
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_concurrent_build_is_cancelled_and_leaves_no_invalid_index(
    database: str, number: signal.Signals
) -> None:
    fill(database, 2000)
    arguments = ["index", "build", "geoid_states", "--m", "64", "--ef-construction", "1000", "--concurrently"]
    build = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(DATABASE_URL=database), stderr=subprocess.PIPE, text=True
    )
    with psycopg.connect(database, autocommit=True) as conn:
        while not conn.execute("SELECT FROM pg_stat_progress_create_index WHERE index_relid <> 0").rowcount:
            assert build.poll() is None
            time.sleep(0.01)
        build.send_signal(number)
        _, stderr = build.communicate()
        said = "interrupted" if number == signal.SIGINT else "terminated"
        assert (build.returncode, stderr) == (128 + number, f"kimera-sql: {said}\n")
        assert conn.execute("SELECT FROM pg_indexes WHERE indexname LIKE 'idx_geoid_vector%'").rowcount == 0
