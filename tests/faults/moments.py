"""Ends commands at moments of chance, and looks at what they leave behind.

PYTHONPATH=.:tests:tests/faults python tests/faults/moments.py --seconds 600
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from commands import COMMAND, environment
from fix_backups import databases, fill, names, processes_with
from fix_clusters import Cluster, cluster
from psycopg.conninfo import make_conninfo

from kimera_sql import add_adapters, migrate, sqlite
from kimera_sql.files import unload
from kimera_sql.ops import backup

MARK: Final = "KIMERA_TEST_MOMENT"
"""The variable by which the processes of one command are known."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Place:
    """What commands are run on: a server that archives, a database with rows, a dump, a base backup, SQLite files."""

    server: Cluster
    folder: Path
    database: str
    dump: Path
    base: Path

    @property
    def scratch(self) -> Path:
        """Where commands put their temporary files."""
        return self.folder / "scratch"

    @property
    def work(self) -> Path:
        """Where commands put what they make."""
        return self.folder / "work"


@contextmanager
def place(rows: int = 500) -> Iterator[Place]:
    """Make the place, and remove it."""
    with cluster("postgres18") as server:
        folder = server.folder / "moments"
        for made in (folder, folder / "scratch", folder / "work"):
            made.mkdir()
            made.chmod(0o755 if made == folder else 0o777)
        with server.connect() as conn:
            conn.execute("CREATE DATABASE moments")
        database = make_conninfo(server.conninfo, dbname="moments")
        with psycopg.connect(database, autocommit=True) as conn:
            migrate(conn)
            add_adapters(conn)
            fill(conn, rows)
            unload(conn, "system_metrics", folder / "metrics.jsonl")
            conn.execute("DELETE FROM system_metrics")
            conn.execute("CREATE INDEX kept ON semantic_embeddings USING hnsw (embedding vector_cosine_ops)")
            dump = backup.make_dump(conn, server.backups).path
            base = backup.make_base(conn, server.backups).path
        server.switch()
        yield Place(server, folder, database, dump, base)


STARTED: Final = 0.3
"""Seconds after which every command has begun."""

CRITICAL: Final = ("doctor", "config", "adopt")
"""Commands that find something wrong here."""

ENDLESS: Final = ("monitor", "backup receive-wal", "recover and run")
"""Commands that do not end by themselves, or leave a server running on purpose."""


def commands(where: Place) -> dict[str, Sequence[str]]:
    """The commands that work for a while, by a name for each."""
    backups = ("--dir", str(where.server.backups))
    into = str(where.work / "new")
    recover = ("--base", str(where.base), "--archive", str(where.server.wal), "--data-dir", into, "--to-end")
    return {
        "init": ("init",),
        "adopt": ("adopt",),
        "index build": ("index", "build", "geoid_states", "--concurrently"),
        "index build plain": ("index", "build", "geoid_states", "--method", "ivfflat"),
        "index tune": ("index", "tune", "semantic_embeddings"),
        "pairs": ("pairs", "geoid_states", "--similarity", "0.1"),
        "backup dump": ("backup", "dump", "--dir", into),
        "backup base": ("backup", "base", "--dir", into),
        "backup verify": ("backup", "verify", *backups),
        "backup list": ("backup", "list", *backups),
        "backup prune": ("backup", "prune", *backups),
        "backup drill": ("backup", "drill", *backups),
        "backup drill on server": ("backup", "drill", "--on-server", *backups),
        "backup receive-wal": ("backup", "receive-wal", "--dir", into, "--slot", "moments"),
        "restore": ("restore", str(where.dump), "--into", "restored"),
        "recover": ("recover", *recover),
        "recover and run": ("recover", *recover, "--keep-running"),
        "monitor": ("monitor", "--watch", "0.1"),
        "monitor textfile": ("monitor", "--prometheus", f"{into}.prom"),
        "doctor": ("doctor",),
        "verify": ("verify",),
        "maintain all": ("maintain", "all"),
        "config": ("config", "check"),
        "copy to sqlite": ("copy", "--from", "postgres", "--to", "sqlite"),
        "copy from sqlite": ("copy", "--from", "sqlite", "--to", "postgres", "--skip-existing"),
        "unload parquet": ("unload", "geoid_states", f"{into}.parquet"),
        "unload jsonl": ("unload", "geoid_states", f"{into}.jsonl"),
        "unload npz": ("unload", "geoid_states", f"{into}.npz"),
        "load": ("load", "system_metrics", str(where.folder / "metrics.jsonl")),
        "index retrain": ("index", "retrain", "kept"),
        "maintain vacuum": ("maintain", "vacuum"),
        "demo": ("--embedded", into, "demo"),
    }


def end(where: Place, name: str, number: signal.Signals, after: float) -> tuple[str, list[str]]:
    """Run the command *name*, send it *number* *after* some seconds; return what became of it, and its faults."""
    mark = uuid4().hex
    shutil.rmtree(where.work)
    where.work.mkdir(mode=0o777)
    file = where.work / "kimera.db"
    if name == "copy from sqlite":
        shutil.copy(_sqlite(where), file)
    with where.server.connect() as admin:
        before = databases(admin)
        started = functools.partial(
            subprocess.Popen,
            [*COMMAND, *commands(where)[name]],
            env=environment(
                **{
                    MARK: mark,
                    "PYTHONWARNINGS": "ignore",
                    "DATABASE_URL": make_conninfo(where.database, application_name=mark),
                    "KIMERA_SQLITE_PATH": str(file),
                    "TMPDIR": str(where.scratch),
                }
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        process = started()
        try:
            time.sleep(after)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
        faults = list(_faults(where, admin, name, mark, before))
        code = process.returncode
        if number == signal.SIGKILL:
            # What is in its own place is cleared away by the next run; nothing may go on by itself.
            faults = [fault for fault in faults if fault.startswith(("process", "session"))]
            if name not in ENDLESS:
                _, stderr = started().communicate(timeout=120)
                faults += [
                    f"{fault}, after the next run: {stderr}" for fault in _faults(where, admin, name, mark, before)
                ]
            _tidy(where, admin, before)
            return "killed" if code == -9 else "done", faults
        # Before the command has begun, or while Python starts, the signal is the system's and Python's own.
        early = code == -number or (after < STARTED and "Fatal Python error" in stderr)
        if code not in (0, 1, 128 + number) and not early:
            faults.append(f"exit code {code}: {stderr}")
        said = stderr.splitlines()
        if said and name == "pairs" and "goes on from here" in said[-1]:
            said.pop()
        if code == 128 + number and (len(said) != 1 or not said[0].startswith("kimera-sql: ")):
            faults.append(f"said {stderr!r}")
        if code == 1 and not early and name not in CRITICAL:
            faults.append(f"failed: {stderr}")
        if code in (0, 1) and not early and ("Traceback" in stderr or "ignored" in stderr):
            faults.append(f"exit code {code}: {stderr}")
        if early and "Traceback" in stderr and after > STARTED:
            faults.append(f"a traceback after {after:.3f} s: {stderr}")
        _tidy(where, admin, before)
    return "early" if early else str(code), faults


def _faults(where: Place, admin: psycopg.Connection, name: str, mark: str, before: list[str]) -> Iterator[str]:
    deadline = time.monotonic() + 5
    while (alive := processes_with(f"{MARK}={mark}")) and time.monotonic() < deadline:
        time.sleep(0.02)
    if name != "recover and run":
        yield from (f"process {one}" for one in alive)
    while time.monotonic() < deadline:
        sessions = admin.execute(
            "SELECT application_name, query FROM pg_stat_activity "
            "WHERE (datname = 'moments' OR datname LIKE 'kimera_restore%%' OR application_name = %s) "
            "AND backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()",
            [mark],
        ).fetchall()
        if not sessions:
            break
        time.sleep(0.02)
    yield from (f"session {one}" for one in sessions)
    yield from (f"database {one}" for one in databases(admin) if one not in (*before, "restored"))
    yield from (f"scratch {one.name}" for one in where.scratch.iterdir())
    yield from (
        f"file {one}" for one in names(where.work) if "kimera_partial" in one or one.startswith("kimera_recovery")
    )
    with psycopg.connect(where.database) as conn:
        invalid = conn.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()
    yield from (f"index {one}" for one in invalid)


def _tidy(where: Place, admin: psycopg.Connection, before: list[str]) -> None:
    if (where.work / "new/postmaster.pid").exists():
        with suppress(OSError, ValueError):
            os.kill(int((where.work / "new/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
            time.sleep(0.5)
    for one in databases(admin):
        if one not in before:
            admin.execute(f'DROP DATABASE "{one}" WITH (FORCE)'.encode())
    admin.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'moments'")
    with psycopg.connect(where.database, autocommit=True) as conn:
        for (index,) in conn.execute(
            "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "JOIN pg_am ON pg_am.oid = relam WHERE amname IN ('hnsw', 'ivfflat') AND relname <> 'kept'"
        ).fetchall():
            conn.execute(f"DROP INDEX {index}".encode())
        conn.execute("DELETE FROM system_metrics")
    for left in where.scratch.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _sqlite(where: Place) -> Path:
    path = where.folder / "source.db"
    if not path.exists():
        conn = sqlite.connect(path)
        migrate(conn)
        fill(conn, 200)
        conn.commit()
        conn.close()
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a command, or the begin of its name")
    parser.add_argument("--kill", action="store_true", help="with SIGKILL alone")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    until = time.monotonic() + options.seconds
    outcomes: Counter[str] = Counter()
    failed = 0
    with place() as where:
        wanted = [name for name in commands(where) if options.only is None or name.startswith(options.only)]
        while time.monotonic() < until:
            name = chance.choice(wanted)
            number = signal.SIGKILL if options.kill else chance.choice(SIGNALS)
            after = chance.choice([chance.uniform(0.05, 0.6), chance.uniform(0.3, 3)])
            outcome, faults = end(where, name, number, after)
            outcomes[f"{number.name} {outcome}"] += 1
            for fault in faults:
                failed += 1
                print(f"{name}, {number.name} after {after:.3f} s: {fault}", flush=True)
    print(dict(outcomes), f"{failed} faults")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
