"""What every command does: usage, errors, signals, the embedded server."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import COMMAND, environment, run_as_process


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
