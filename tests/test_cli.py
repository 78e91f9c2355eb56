"""Each command, run as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from commands import COMMAND, environment, run


def test_init_creates_the_schema_once(empty_database: str) -> None:
    first = run("init", DATABASE_URL=empty_database)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("applied 0001_")
    again = run("init", DATABASE_URL=empty_database)
    assert (again.returncode, again.stdout, again.stderr) == (0, "the schema is up to date\n", "")


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


def test_index_build_of_an_index_that_exists_is_an_error(database: str) -> None:
    fill(database, 5)
    assert run("index", "build", "geoid_states", "--concurrently", DATABASE_URL=database).returncode == 0
    again = run("index", "build", "geoid_states", DATABASE_URL=database)
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_an_index_that_is_not_there_is_an_error(database: str) -> None:
    for command in ("drop", "retrain"):
        ran = run("index", command, "nothing", DATABASE_URL=database)
        assert (ran.returncode, ran.stderr) == (1, "kimera-sql: no vector index has the name nothing\n")


def test_an_interrupted_concurrent_build_exits_with_130_and_leaves_no_invalid_index(database: str) -> None:
    fill(database, 2000)
    arguments = ["index", "build", "geoid_states", "--m", "64", "--ef-construction", "1000", "--concurrently"]
    build = subprocess.Popen(
        [*COMMAND, *arguments], env=environment(DATABASE_URL=database), stderr=subprocess.PIPE, text=True
    )
    with psycopg.connect(database, autocommit=True) as conn:
        while not conn.execute("SELECT FROM pg_stat_progress_create_index WHERE index_relid <> 0").rowcount:
            assert build.poll() is None
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        _, stderr = build.communicate()
        assert (build.returncode, stderr) == (130, "kimera-sql: interrupted\n")
        assert conn.execute("SELECT FROM pg_indexes WHERE indexname LIKE 'idx_geoid_vector%'").rowcount == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("nothing",), "invalid choice: 'nothing'"),
        (("index", "build", "portals"), "invalid choice: 'portals'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_no_server_exits_with_1_and_no_traceback() -> None:
    ran = run("init", KIMERA_DB_HOST="localhost", KIMERA_DB_PORT="1", KIMERA_DB_PASSWORD="planted-secret")
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: no database could be reached")
    assert "Traceback" not in ran.stderr
    assert "planted-secret" not in ran.stdout + ran.stderr


def test_an_empty_url_is_an_error() -> None:
    ran = run("init", DATABASE_URL="")
    assert (ran.returncode, ran.stderr) == (
        1,
        "kimera-sql: DATABASE_URL is set but empty; give it a value or unset it\n",
    )


def test_embedded_keeps_its_data_in_the_folder(open_folder: Path) -> None:
    folder = open_folder / "data"
    assert run("--embedded", str(folder), "init").returncode == 0
    again = run("--embedded", str(folder), "init")
    assert (again.returncode, again.stdout, again.stderr) == (0, "the schema is up to date\n", "")
    assert not (folder / "postmaster.pid").exists()


def test_embedded_takes_no_command_for_its_folder() -> None:
    ran = run("--embedded", "init", "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "usage: kimera-sql init" in ran.stdout


def test_a_terminated_command_stops_its_server(open_folder: Path) -> None:
    folder = open_folder / "data"
    demo = subprocess.Popen(
        [*COMMAND, "--embedded", str(folder), "demo"],
        env=environment(PYTHONUNBUFFERED="1", PYTHONWARNINGS=""),
        stdout=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        demo.stdout.readline()
        assert (folder / "postmaster.pid").exists()
        demo.send_signal(signal.SIGTERM)
    assert demo.returncode == 128 + signal.SIGTERM
    assert not (folder / "postmaster.pid").exists()


def test_demo_finds_what_is_asked_for(open_folder: Path) -> None:
    folder = str(open_folder / "data")
    ran = run("--embedded", folder, "demo", "--query", "compress and decompress data with gzip")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "? compress and decompress data with gzip" in ran.stdout
    assert "gzip." in ran.stdout.partition("? compress")[2].partition("reading path")[0]
    assert ran.stdout.partition("reading path")[2].count("entropy") == 9
    again = run("--embedded", folder, "demo", "--query", "compress and decompress data with gzip")
    assert again.returncode == 0
    assert "loaded" not in again.stdout


def test_interrupted_exits_with_130(open_folder: Path) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "--embedded", str(open_folder / "data"), "demo"],
        env=environment(PYTHONUNBUFFERED="1", PYTHONWARNINGS=""),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    demo.stdout.readline()
    time.sleep(0.2)
    demo.send_signal(signal.SIGINT)
    _, stderr = demo.communicate()
    assert (demo.returncode, stderr) == (130, "kimera-sql: interrupted\n")
