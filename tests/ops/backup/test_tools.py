"""PostgreSQL's own programs: the right one is found, and shown no more than it needs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_backups import children

from kimera_sql.errors import BackupError
from kimera_sql.ops.backup import tools


def fake_tool(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
    path.chmod(0o755)
    return path


def test_a_tool_older_than_its_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_folders", lambda _: iter([tmp_path / "old", tmp_path / "new", tmp_path / "newer"]))
    old = fake_tool(tmp_path / "old", "pg_dump", "15.5 (Debian 15.5-1)")
    with pytest.raises(BackupError) as caught:
        tools.find("pg_dump", 180004)
    assert str(caught.value).startswith(f"{old} is version 15.5, and the server is 18.4: a tool must not be older")
    assert "postgresql-client-18" in str(caught.value)
    newer, new = fake_tool(tmp_path / "new", "pg_dump", "19.1"), fake_tool(tmp_path / "newer", "pg_dump", "18.0")
    assert tools.find("pg_dump", 180004) == new
    assert tools.find("pg_dump", 160001) == new
    assert tools.find("pg_dump", 150000) == old
    assert tools.find("pg_dump", None) == newer
    with pytest.raises(BackupError, match=r"pg_dump must be of version 16; install .* postgresql-client-16"):
        tools.find("pg_dump", 160001, exact=True)
    broken = fake_tool(tmp_path / "old", "psql", "none")
    with pytest.raises(BackupError, match=f"psql was not found; {broken} does not run; install"):
        tools.find("psql", None)
    with pytest.raises(BackupError, match=r"pg_ctl was not found; install .* package postgresql-16\)"):
        tools.find("pg_ctl", 160001)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user whom a file's mode binds, as it does not bind root."""
    before = os.getresuid()
    if before[1] == 0:
        other = pwd.getpwnam("nobody").pw_uid
        os.setresuid(other, other, 0)
    try:
        yield
    finally:
        os.setresuid(*before)


def test_a_folder_of_path_that_may_not_be_entered_is_passed_over(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `su` from root, which keeps root's PATH."""
    expected = tools.find("pg_dump", None)
    fake_tool(open_folder / "closed", "pg_dump", "99.1")
    (open_folder / "closed").chmod(0)
    monkeypatch.setenv("PATH", f"{open_folder / 'closed'}:{os.environ['PATH']}")
    with nobody():
        found = tools.find("pg_dump", None)
    (open_folder / "closed").chmod(0o700)
    assert found == expected


def test_the_servers_own_tools_come_first(pg_conn: psycopg.Connection) -> None:
    tool = tools.find("pg_dump", pg_conn)
    assert tools.program_version(tool) == pg_conn.info.server_version


def test_a_failing_tool_is_an_error_without_secrets(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "no login with $(cat $PGPASSFILE) at $PGHOST as $PGUSER" >&2\nexit 3\n')
    tool.chmod(0o755)
    with pytest.raises(BackupError) as caught:
        tools.run(tool, [], {"password": "plain", "host": "h", "user": "u"})
    assert str(caught.value) == "tool failed (exit status 3)\n  no login with *:*:*:*:*** at h as u"
    with pytest.raises(BackupError, match="cannot be run: No such file"):
        tools.run(tmp_path / "missing", [])


def test_a_tool_sees_no_other_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    monkeypatch.setenv("PGPASSWORD", "other")
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nenv | grep ^PG | sort\n")
    tool.chmod(0o755)
    assert tools.run(tool, [], {"port": "7", "dbname": "d"}) == "PGDATABASE=d\nPGPORT=7\n"


def test_a_tool_ends_with_what_started_it(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nexec sleep 1000\n")
    tool.chmod(0o755)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.run(tool, [], tick=interrupt)
    assert children("sleep") == []
