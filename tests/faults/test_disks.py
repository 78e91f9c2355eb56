"""SQLite files that may not be written, that have no room, and whose writer is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMAND, environment, run
from strategies import unit

from kimera_sql import SqlitePool, geoids, migrate
from kimera_sql.aio.sqlite import SqlitePool as AsyncSqlitePool
from kimera_sql.errors import ConnectionFailed
from kimera_sql.ops.backup import Dump

NOBODY = 65534

_WRITER = """
import sys
import numpy as np
from kimera_sql import SqlitePool, geoids
vector = np.ones(1024, np.float32)
with SqlitePool(sys.argv[1]) as pool:
    while True:
        with pool.connection() as conn:
            new = [geoids.NewGeoid(state_vector=vector, entropy=0, coherence_factor=0, energy_level=0)] * 20
            saved = geoids.insert_many(conn, new)
        print(saved, flush=True)
"""


def new_file(path: Path, rows: int = 0) -> Path:
    with SqlitePool(path) as pool, pool.connection() as conn:
        migrate(conn)
        geoids.insert_many(conn, [state(number) for number in range(rows)])
    return path


def state(number: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(number), entropy=0, coherence_factor=0, energy_level=0)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_file_is_closed_to_others_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as conn:
            migrate(conn)
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"kimera.db": 0o600, "kimera.db-wal": 0o600, "kimera.db-shm": 0o600}


def test_a_file_that_is_there_keeps_its_mode_and_its_locks(tmp_path: Path) -> None:
    path = new_file(tmp_path / "kimera.db")
    path.chmod(0o640)
    with SqlitePool(path, size=2) as pool, pool.connection() as conn:
        conn.execute("BEGIN IMMEDIATE")
        with pool.connection():  # opens it again; were the file closed there, the lock would be gone
            locked = sqlite3.connect(path, timeout=0)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                locked.execute("BEGIN IMMEDIATE")
            locked.close()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_written_can_be_read(open_folder: Path) -> None:
    folder = open_folder / "device"
    folder.mkdir()
    path = new_file(folder / "kimera ä?.db", rows=3)
    open_folder.chmod(0o755)
    folder.chmod(0o555)
    path.chmod(0o444)
    # As root everything can be written.
    reader = multiprocessing.get_context("spawn").Process(target=_read_as_nobody, args=(path, state(0)))
    reader.start()
    reader.join()
    folder.chmod(0o755)
    assert reader.exitcode == 0
    assert [one.name for one in folder.iterdir()] == [path.name]


def _read_as_nobody(path: Path, new: geoids.NewGeoid) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with SqlitePool(path) as pool:
        with pool.connection() as conn:
            assert migrate(conn) == []
            assert len(geoids.similar(conn, new.state_vector, k=10)) == 3
        with (
            pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database") as caught,
            pool.connection() as conn,
        ):
            geoids.insert(conn, new)
        assert caught.value.__notes__ == [f"of the SQLite file {path}"]
    with pytest.raises(ConnectionFailed, match=r"other\.db\): Permission denied"):
        SqlitePool(path.with_name("other.db"))


def test_a_full_disk_is_named_and_nothing_is_half_written(tmp_path: Path) -> None:
    path = new_file(tmp_path / "kimera.db", rows=3)

    def fill() -> None:
        with pool.connection() as conn:
            (pages,) = conn.execute("PRAGMA page_count").fetchone()
            conn.execute(f"PRAGMA max_page_count = {pages + 2}")
            geoids.insert_many(conn, [state(number) for number in range(100)])

    with SqlitePool(path, size=1) as pool:
        with pytest.raises(sqlite3.OperationalError, match="disk is full") as caught:
            fill()
        assert caught.value.__notes__[-1] == f"of the SQLite file {path}"
        with pool.connection() as conn:
            assert geoids.count(conn) == 3
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_full_disk_is_named_by_the_asynchronous_pool(tmp_path: Path) -> None:
    path = new_file(tmp_path / "kimera.db")

    async def fill() -> None:
        async with AsyncSqlitePool(path, size=1) as pool, pool.connection() as conn:
            await conn.execute("PRAGMA max_page_count = 1")
            await conn.execute("CREATE TABLE large AS SELECT randomblob(1000000) AS bytes")

    with pytest.raises(sqlite3.OperationalError, match="disk is full") as caught:
        asyncio.run(fill())
    assert caught.value.__notes__ == [f"of the SQLite file {path}"]


@pytest.mark.needs("root")
def test_a_full_disk_under_a_drill_is_named(sample: Dump, open_folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", open_folder], check=True)
    try:
        open_folder.chmod(0o755)
        ran = run("backup", "drill", str(sample.path), TMPDIR=str(open_folder))
        assert ran.returncode == 1
        assert "No space left on device" in ran.stderr
        assert ran.stderr.endswith(f"  the disk that {open_folder} is on is full\n")
        assert list(open_folder.iterdir()) == []
    finally:
        subprocess.run(["umount", open_folder], check=True)


def test_the_command_names_a_file_that_has_no_room(tmp_path: Path) -> None:
    missing = run("init", KIMERA_SQLITE_PATH=str(tmp_path / "none/kimera.db"), PYTHONWARNINGS="")
    assert missing.returncode == 1
    assert missing.stderr.endswith(f"SQLite ({tmp_path}/none/kimera.db): No such file or directory\n")


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [("/dev/full", 1, "kimera-sql: standard output: No space left on device\n"), ("pipe", 1, "")],
)
def test_output_that_nobody_takes_is_an_error_without_a_traceback(device: str, code: int, said: str) -> None:
    read, output = os.pipe() if device == "pipe" else (None, os.open(device, os.O_WRONLY))
    if read is not None:
        os.close(read)
    ran = subprocess.run(
        [*COMMAND, "queries"], env=environment(), stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(output)
    assert (ran.returncode, ran.stderr) == (code, said)


@pytest.mark.parametrize("after", [1, 5, 20])
def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path, after: int) -> None:
    path = new_file(tmp_path / "kimera.db")
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = sum(int(writer.stdout.readline()) for _ in range(after))
        writer.kill()
        acknowledged += sum(map(int, writer.stdout.read().split()))
    with SqlitePool(path) as pool, pool.connection() as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = geoids.count(conn)
    # The last transaction may have been written and not be told of.
    assert found in (acknowledged, acknowledged + 20)
    assert acknowledged >= after * 20
