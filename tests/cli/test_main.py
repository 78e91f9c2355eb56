"""What every command does: usage, errors, signals, the embedded server."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import COMMAND, environment, run, run_as_process


def test_init_creates_the_schema_once(empty_database: str) -> None:
    first = run_as_process("init", DATABASE_URL=empty_database)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("applied 0001_")
    again = run_as_process("init", DATABASE_URL=empty_database)
    assert (again.returncode, again.stdout, again.stderr) == (0, "the schema is up to date\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("nothing",), "invalid choice: 'nothing'"),
        (("index", "build", "portals"), "invalid choice: 'portals'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    ran = run_as_process(*arguments)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_no_server_exits_with_1_and_no_traceback() -> None:
    ran = run_as_process("init", KIMERA_DB_HOST="localhost", KIMERA_DB_PORT="1", KIMERA_DB_PASSWORD="planted-secret")
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: no database could be reached")
    assert "Traceback" not in ran.stderr
    assert "planted-secret" not in ran.stdout + ran.stderr


def test_an_empty_url_is_an_error() -> None:
    ran = run_as_process("init", DATABASE_URL="")
    assert (ran.returncode, ran.stderr) == (
        1,
        "kimera-sql: DATABASE_URL is set but empty; give it a value or unset it\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("monitor",),
        ("doctor",),
        ("roles",),
        ("verify",),
        ("config", "check"),
        ("backup", "dump", "--dir", "backups"),
        ("backup", "base", "--dir", "backups"),
        ("backup", "receive-wal", "--dir", "backups"),
        ("restore", "DUMP", "--into", "copy"),
        ("index", "list"),
        ("index", "clean"),
        ("index", "drop", "name"),
        ("index", "build", "geoid_states"),
        ("index", "tune", "geoid_states"),
        ("pairs", "geoid_states"),
        ("maintain", "vacuum"),
        ("maintain", "all"),
    ],
)
@pytest.mark.parametrize("fallback", ["unconfigured", "always"])
def test_without_a_server_a_command_that_needs_one_opens_no_sqlite_file(
    arguments: tuple[str, ...], fallback: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments, KIMERA_SQLITE_FALLBACK=fallback)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "kimera-sql: this command needs a PostgreSQL server, and none is configured: set KIMERA_DB_HOST and its "
        "companions or DATABASE_URL, or give --dsn or --embedded before the command\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down_is_not_replaced_by_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("doctor", KIMERA_DB_HOST=str(tmp_path), KIMERA_SQLITE_FALLBACK="always")
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: no database could be reached")
    assert "SQLite" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_dsn_stands_before_the_environment(empty_database: str) -> None:
    for environs in ({}, {"DATABASE_URL": "postgresql:///nowhere"}, {"KIMERA_DB_HOST": "nowhere.invalid"}):
        ran = run("--dsn", empty_database, "init", **environs)
        assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "the schema is up to date\n"
    assert run("--dsn", empty_database, "index", "list").stdout == "there are no vector indexes\n"


def test_a_dsn_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    wrong = run("--dsn", "postgresql://u:planted-secret@h:port/db", "init")
    assert wrong.returncode == 2
    assert "argument --dsn: conninfo: the port is not a number" in wrong.stderr
    down = run("--dsn", f"host={tmp_path} password=planted-secret", "doctor")
    assert down.returncode == 1
    assert down.stderr.startswith("kimera-sql: no database could be reached:\n  conninfo (host=")
    assert "planted-secret" not in wrong.stderr + down.stderr
    assert "not allowed with argument" in run("--dsn", "dbname=a", "--embedded", str(tmp_path), "init").stderr
    assert "demo fills a database of its own" in run("--dsn", "dbname=a", "demo").stderr


def test_embedded_keeps_its_data_in_the_folder(open_folder: Path) -> None:
    folder = open_folder / "data"
    assert run_as_process("--embedded", str(folder), "init").returncode == 0
    again = run_as_process("--embedded", str(folder), "init")
    assert (again.returncode, again.stdout, again.stderr) == (0, "the schema is up to date\n", "")
    assert not (folder / "postmaster.pid").exists()


def test_embedded_takes_no_command_for_its_folder() -> None:
    ran = run_as_process("--embedded", "init", "--help")
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
