"""Commands that are killed, or lose what they work on: nothing goes on without them, and the next run clears up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_backups import (
    children,
    databases,
    held_up,
    names,
    processes_with,
    wait_for_pg_dump,
)
from fix_servers import Server
from psycopg import sql as composed

from kimera_sql.ops.backup import Dump, left_databases, restore_dump, tools
from kimera_sql.ops.backup.scratch import new_database

MARK: Final = "KIMERA_TEST_MARK"
PATIENCE: Final = 10.0


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which servers can enter."""
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


class Command:
    """A command that runs."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._mark = uuid4().hex
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(**{MARK: self._mark}, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[str]:
        """Its processes, those of programs that it has started included."""
        return processes_with(f"{MARK}={self._mark}")

    def wait_until(self, reached: Callable[[], object]) -> None:
        until(lambda: self.process.poll() is not None or reached())
        assert self.process.poll() is None, self.process.stderr

    def kill(self) -> None:
        """Kill it, and wait for all that came of it to end."""
        self.process.kill()
        self.process.communicate()
        until(lambda: not self.processes())


def until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


@pytest.mark.ends
def test_a_killed_dump_ends_pg_dump_and_the_next_one_removes_its_files(
    filled: str, tmp_path: Path, scratch: Path
) -> None:
    with psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        command = Command("backup", "dump", "--dir", str(tmp_path), DATABASE_URL=filled)
        wait_for_pg_dump(other)
        command.kill()
        until(
            lambda: not other.execute("SELECT FROM pg_stat_activity WHERE application_name = 'pg_dump'").rowcount,
        )
    assert len(names(tmp_path)) == 3
    assert list(scratch.iterdir()) == []
    assert run("backup", "dump", "--dir", str(tmp_path), DATABASE_URL=filled).returncode == 0
    assert [Path(name).suffix for name in names(tmp_path)] == [".dump", ".sql", ".json"]


def test_a_killed_drill_ends_its_server_and_the_next_one_removes_its_folder(sample: Dump, scratch: Path) -> None:
    command = Command("backup", "drill", str(sample.path))
    command.wait_until(lambda: any(scratch.glob("*/data/postmaster.pid")))
    (left,) = scratch.iterdir()
    command.kill()
    assert left.is_dir()
    assert run("backup", "drill", str(sample.path)).returncode == 0
    assert list(scratch.iterdir()) == []


def test_a_drill_that_is_ended_leaves_nothing(sample: Dump, scratch: Path) -> None:
    command = Command("backup", "drill", str(sample.path))
    command.wait_until(lambda: any(scratch.glob("*/data/postmaster.pid")))
    command.process.send_signal(signal.SIGTERM)
    _, stderr = command.process.communicate()
    assert (command.process.returncode, stderr) == (143, "kimera-sql: terminated\n")
    assert list(scratch.iterdir()) == []
    assert command.processes() == []


@pytest.fixture
def into(newest: Server) -> Iterator[str]:
    name = f"restored_{uuid4().hex}"
    yield name
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        conn.execute(composed.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(composed.Identifier(name)))


def half_made(conn: psycopg.Connection) -> list[str]:
    return [name for name in databases(conn) if name.startswith("kimera_restore_")]


def test_a_killed_restore_leaves_a_database_that_the_next_one_drops(sample: Dump, newest: Server, into: str) -> None:
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        command = Command("restore", str(sample.path), "--into", into, DATABASE_URL=newest.conninfo)
        command.wait_until(lambda: half_made(conn))
        command.kill()
        (left,) = half_made(conn)
        until(lambda: left_databases(conn) == [left])
        restore_dump(conn, sample.path, into=into)
        assert half_made(conn) == []
        assert into in databases(conn)


def test_what_a_running_restore_makes_is_left_alone(sample: Dump, newest: Server) -> None:
    with (
        psycopg.connect(newest.conninfo, autocommit=True) as conn,
        psycopg.connect(newest.conninfo, autocommit=True) as other,
        new_database(conn, sample.path, sample) as one,
        new_database(other, sample.path, sample) as two,
    ):
        assert half_made(conn) == sorted([one, two])
        assert left_databases(conn) == []
        for name in (one, two):
            conn.execute(composed.SQL("DROP DATABASE {}").format(composed.Identifier(name)))


def test_a_restore_whose_connection_is_ended_drops_its_database_over_another(sample: Dump, newest: Server) -> None:
    with (
        psycopg.connect(newest.conninfo, autocommit=True) as conn,
        psycopg.connect(newest.conninfo, autocommit=True) as other,
    ):
        with (
            pytest.raises(psycopg.OperationalError, match="terminating connection"),
            new_database(conn, sample.path, sample),
        ):
            _use_ended(conn, other)
        assert half_made(other) == []


def _use_ended(conn: psycopg.Connection, other: psycopg.Connection) -> None:
    other.execute("SELECT pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])
    conn.execute("SELECT")


def test_a_tool_ends_with_its_children(tmp_path: Path) -> None:
    """As pg_basebackup's does not by itself, which receives the WAL."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nsleep 1000 &\nexec sleep 1001\n")
    tool.chmod(0o755)

    def interrupt() -> None:
        if len(processes_with("PGAPPNAME=children")) > 1:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tools.run(tool, [], {"application_name": "children"}, tick=interrupt)
    assert time.monotonic() - started < PATIENCE
    assert processes_with("PGAPPNAME=children") == []


def test_a_tool_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_PATIENCE", 0.5)
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\ntrap '' TERM\necho $$ >$PGAPPNAME\nwhile :; do sleep 0.1; done\n")
    tool.chmod(0o755)

    def interrupt() -> None:
        if (tmp_path / "started").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.run(tool, [], {"application_name": str(tmp_path / "started")}, tick=interrupt)
    assert children("tool") == []


def test_without_files_in_memory_the_password_is_in_a_file_that_goes(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\nstat -c %a $PGPASSFILE\necho "$PGPASSFILE"\ncat $PGPASSFILE\n')
    tool.chmod(0o755)
    mode, path, content = tools.run(tool, [], {"password": "with:colon"}).splitlines()
    assert (mode, content) == ("600", "*:*:*:*:with\\:colon")
    assert path.startswith(str(scratch))
    assert list(scratch.iterdir()) == []


_LOST: Final = """
import signal, sys, time
from kimera_sql import cli

class Careless:
    def __del__(self):
        print("careless", flush=True)
        time.sleep(5)  # the signal comes here

def run(argv):
    Careless()
    time.sleep(5)
    return 0

cli._run = run
sys.exit(cli.main([]))
"""


def interrupted(script: str, number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a process that runs *script*, once it has printed a line; return its exit code and errors."""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE)
    return process.returncode, stderr


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    assert interrupted(_LOST, signal.SIGTERM) == (143, "kimera-sql: terminated\n")


_LEAVING: Final = """
import atexit, sys, time
from kimera_sql import cli

def late():
    print("late", flush=True)
    time.sleep(5)

atexit.register(late)
cli._run = lambda argv: 0
sys.exit(cli.main([]))
"""


def test_a_signal_while_python_ends_is_no_traceback() -> None:
    assert interrupted(_LEAVING, signal.SIGINT) == (130, "")


def test_a_command_under_nohup_goes_on_without_its_terminal(database: str) -> None:
    with subprocess.Popen(
        ["nohup", *COMMAND, "monitor", "locks", "--watch", "0.1"],
        env=environment(DATABASE_URL=database, PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGHUP)
        assert [watching.stdout.readline() for _ in range(9)][-1]
        watching.send_signal(signal.SIGTERM)
    assert watching.returncode == 143


def test_a_closed_terminal_ends_a_command_and_what_it_has_started(filled: str, tmp_path: Path) -> None:
    """It gets SIGHUP, and can no longer write anything."""
    terminal, inside = os.openpty()
    with psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        mark = uuid4().hex
        with subprocess.Popen(
            [*COMMAND, "backup", "dump", "--dir", str(tmp_path)],
            env=environment(**{MARK: mark}, DATABASE_URL=filled),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        ) as command:
            os.close(inside)
            wait_for_pg_dump(other)
            os.close(terminal)
            command.send_signal(signal.SIGHUP)
        assert command.returncode == 129
        until(lambda: not processes_with(f"{MARK}={mark}"))
    assert names(tmp_path) == []
