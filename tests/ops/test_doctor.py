"""What the doctor finds: in states that are made on the servers, and in facts that no test can make there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from commands import run
from fix_monitoring import connected, fill, grant, only, own_server, until
from fix_servers import Server
from psycopg.conninfo import make_conninfo

from kimera_sql import SqlitePool, metrics
from kimera_sql.errors import InvalidValue, UnsupportedByServer
from kimera_sql.ops import backup, doctor, monitoring, tuning
from kimera_sql.ops.backup import Backup, tools
from kimera_sql.ops.doctor import Extension, Facts, Finding, Session, Transport
from kimera_sql.ops.doctor.known_faults import PGVECTOR_FAULTS, SERVER_FAULTS
from kimera_sql.ops.monitoring import (
    Archiver,
    Bloat,
    Blocked,
    Database,
    IndexUse,
    Replica,
    SampledSearches,
    Slot,
    Standby,
    TableUse,
    Transaction,
    VectorFault,
    VectorHealth,
    Wraparound,
)
from kimera_sql.ops.roles import LostLogin
from kimera_sql.ops.tuning import Check
from kimera_sql.schema import Misplaced
from kimera_sql.search import indexes
from kimera_sql.sql.postgres import Connection

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

HEALTHY = Facts(
    now=NOW,
    server=monitoring.ServerState("18.7", "0.8.7", NOW - timedelta(days=3), 259200.0, False, 10, 100),
    server_version=180007,
    session=Session("kimera", False, -1, -1),
    transport=Transport("db.example.org", True, True),
    settings={
        "archive_command": "archive %p",
        "archive_library": "",
        "autovacuum": "on",
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "reserved_connections": "0",
        "superuser_reserved_connections": "3",
        "synchronous_standby_names": "nearby",
        "track_counts": "on",
    },
    extensions=(Extension("vector", "0.8.7", "0.8.7"),),
    databases=(Database("kimera_swm", 10**9, 10, 5, 5, 5, 5, 0.5, 0, 0, 0, None),),
    tables=(TableUse("geoid_states", 50_000, 900, 10, 1, 1, NOW, NOW),),
    indexes=(IndexUse("geoid_states_pkey", "geoid_states", "btree", 5, 5, 5, None, 10**9, True, True),),
    vectors=(
        VectorHealth("idx", "geoid_states", "hnsw", "half", 10**8, 50_000, 50_000, 2000.0, 2000.0, 1.0, 9, faults=()),
    ),
    sampled=(SampledSearches("geoid_states", 800, NOW, 10, 200, 0.93, 0.91, 0.95, NOW - timedelta(days=7)),),
    bloat=(Bloat("geoid_states_pkey", "geoid_states", 10**9, 9 * 10**8, 10**8, 0.1),),
    archiver=(Archiver("on", 9, "000000010000000000000009", NOW, 0, None, None, False),),
    replicas=(Replica("nearby", None, "streaming", "sync", 2**20, 0.5),),
    slots=(Slot("standby", "physical", True, "reserved", 2**20, None),),
    wraparound=(Wraparound("kimera_swm", 200_000_000, 0, 0.093),),
    pool_connections=15,
    backups=(
        Backup(
            kind="dump",
            name="kimera_full_20261123_010000.dump",
            made_at=NOW - timedelta(hours=11),
            database="kimera_swm",
            system="7712706713543365312",
            size=1,
            server_version="18.7",
            rows=1,
            complete=True,
            path=Path("d"),
        ),
    ),
)


def table(**values: Any) -> dict[str, Any]:
    return {"tables": (replace(HEALTHY.tables[0], **values),)}


def index(**values: Any) -> dict[str, Any]:
    return {"indexes": (replace(HEALTHY.indexes[0], **values),)}


def vector(*faults: VectorFault) -> dict[str, Any]:
    return {"vectors": (replace(HEALTHY.vectors[0], faults=faults),)}


def searches(**values: Any) -> dict[str, Any]:
    return {"sampled": (replace(HEALTHY.sampled[0], **values),)}


def archiving(**values: Any) -> dict[str, Any]:
    return {"archiver": (replace(HEALTHY.archiver[0], **values),)}


def slot(**values: Any) -> dict[str, Any]:
    return {"slots": (replace(HEALTHY.slots[0], **values),)}


def replica(**values: Any) -> dict[str, Any]:
    return {"replicas": (replace(HEALTHY.replicas[0], **values),)}


def setting(**values: str) -> dict[str, Any]:
    return {"settings": {**HEALTHY.settings, **values}}


def version(server: str, number: int, pgvector: str | None = "0.8.7") -> dict[str, Any]:
    return {"server": replace(HEALTHY.server, version=server, pgvector=pgvector), "server_version": number}


def saved(**values: Any) -> dict[str, Any]:
    assert HEALTHY.backups
    return {"backups": (replace(HEALTHY.backups[0], **values),)}


IDLE = Transaction(7, "kimera_swm", "app", "Kimera SWM", "idle in transaction", 400.0, 301.0, 5, "SELECT 1")
OPEN = replace(IDLE, state="active", idle_seconds=None, open_seconds=3601.0)
PREPARED = Transaction(None, "kimera_swm", "app", None, "prepared", 3601.0, None, 5, "two")
WAITING = Blocked(7, "app", "a", 61.0, "relation", "ShareLock", "t", "SELECT", 8, None, None, None)
SMALL = Check("shared_buffers", "128MB", "2GB", "because", "default", pending_restart=False, serious=True)
CLEAR = Transport("10.0.0.5", True, False)

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    (version("15.5", 150005), "error", "PostgreSQL 15.5", "GIN indexes"),
    (version("16.1", 160001), "error", "PostgreSQL 16.1", "GIN indexes"),
    (version("15.9", 150009), "warning", "PostgreSQL 15.9", "ALTER ROLE ... SET role"),
    (version("17.1", 170001), "warning", "PostgreSQL 17.1", "ALTER ROLE ... SET role"),
    (version("18.2", 180002), "warning", "PostgreSQL 18.2", "substring()"),
    (version("18.6", 180006), "warning", "PostgreSQL 18.6", "CVE-2026-120141"),
    (version("15.19", 150019), "warning", "PostgreSQL 15.19", "CVE-2026-120141"),
    (version("18.7", 180007, None), "error", "pgvector", "does not have it"),
    (version("18.7", 180007, "0.8.1"), "error", "pgvector 0.8.1", "CVE-2026-3172"),
    (version("18.7", 180007, "0.6.0"), "error", "pgvector 0.6.0", "CVE-2026-3172"),
    (version("18.7", 180007, "0.5.1"), "warning", "pgvector 0.5.1", "corrupt hnsw"),
    ({"extensions": (Extension("vector", "0.8.5", "0.8.7"),)}, "warning", "extension vector", "0.8.5, the server's"),
    ({"has_schema": False}, "error", "schema", "kimera may not see them"),
    (
        {"has_schema": False, "misplaced": Misplaced("the tables are in schema app", "SET search_path = app")},
        "error",
        "schema",
        "the tables are in schema app",
    ),
    (
        {"lost": (LostLogin("service", "public", "ALTER ROLE service SET search_path = app"),)},
        "warning",
        "role service",
        "does not find them or pgvector by its search_path (public)",
    ),
    ({"checked_fault": "why not"}, "note", "settings", "were not compared with the recommendation: why not"),
    (
        {"checked": (SMALL, replace(SMALL, name="work_mem", current="4MB", recommended="128MB"))},
        "note",
        "settings",
        "recommended (in brackets): shared_buffers is 128MB (2GB), work_mem is 4MB (128MB)",
    ),
    (
        {"checked": (replace(SMALL, serious=False, pending_restart=True),)},
        "note",
        "settings",
        "were changed, and wait for a restart: shared_buffers",
    ),
    (setting(fsync="off"), "error", "fsync", "a crash"),
    (setting(full_page_writes="off"), "error", "full_page_writes", "torn pages"),
    (setting(autovacuum="off"), "error", "autovacuum", "dead rows pile up"),
    (setting(track_counts="off"), "error", "track_counts", "autovacuum does not know"),
    ({"compiles": True}, "note", "jit", "searches by index turn it off"),
    (setting(data_checksums="off"), "warning", "data_checksums", "a disk corrupts"),
    (
        {"databases": (replace(HEALTHY.databases[0], checksum_failures=2),)},
        "error",
        "database kimera_swm",
        "2 pages had a wrong checksum",
    ),
    ({"session": Session("root", True, -1, -1)}, "warning", "role root", "is a superuser"),
    ({"transport": CLEAR}, "error", "connection to 10.0.0.5", "without TLS"),
    ({"transport": replace(CLEAR, host="db.example.org")}, "error", "connection to db.example.org", "without TLS"),
    ({"pool_connections": 98}, "error", "pools", "98 connections, max_connections without the reserved is 97"),
    ({"session": Session("kimera", False, 14, -1)}, "error", "pools", "the limit of role kimera is 14"),
    ({"session": Session("kimera", False, -1, 0)}, "error", "pools", "the limit of this database is 0"),
    ({"server": replace(HEALTHY.server, connections=80)}, "warning", "connections", "80 of 100 are taken"),
    (table(analyzed_at=None), "warning", "table geoid_states", "never analysed"),
    (table(dead_rows=25_001), "warning", "table geoid_states", "25,001 dead rows beside 50,000"),
    ({"vectors": ()}, "warning", "table geoid_states", "no vector index"),
    (vector("untrained"), "warning", "index idx", "fewer rows than it has lists"),
    (vector("aged"), "warning", "index idx", "twice the rows"),
    (vector("swollen"), "warning", "index idx", "1.5 times the bytes"),
    (vector("untuned"), "warning", "index idx", "never measured"),
    (vector("unused"), "note", "index idx", "never used"),
    (
        searches(high=0.949),
        "warning",
        "searches of geoid_states",
        "had a recall of 0.930 (0.910 to 0.949) at k=10 on 2026-11-16 12:00, measured with 200 that callers have made; "
        "0.95 is promised",
    ),
    (
        searches(measured_at=NOW - timedelta(days=8)),
        "note",
        "searches of geoid_states",
        "last measured on 2026-11-15",
    ),
    (
        searches(k=None, queries=None, recall=None, low=None, high=None, measured_at=None),
        "note",
        "searches of geoid_states",
        "there are 800, and their recall was not measured",
    ),
    (index(valid=False), "error", "index geoid_states_pkey", "is invalid"),
    (index(scans=0, is_unique=False), "note", "index geoid_states_pkey", "takes 954 MB and was never used"),
    (
        {"bloat": (Bloat("idx", "t", 40 * 2**20, 10 * 2**20, 30 * 2**20, 0.75),)},
        "warning",
        "index idx",
        "some 30 MB of its 40 MB are waste",
    ),
    ({"transactions": (IDLE,)}, "warning", "session 7 of app", "idle in a transaction for 0:05:01"),
    ({"transactions": (OPEN,)}, "warning", "session 7 of app", "open for 1:00:01"),
    ({"transactions": (PREPARED,)}, "warning", "prepared transaction two", "open for 1:00:01"),
    ({"locks": (WAITING,)}, "warning", "session 7 of app", "waited 0:01:01 for a lock that 8 holds"),
    ({"half_made": ("kimera_restore_1",)}, "warning", "database kimera_restore_1", "is half made"),
    (archiving(mode="off"), "note", "archiving", "is off"),
    (setting(archive_command=""), "error", "archiving", "without an archive_command"),
    (
        archiving(failing=True, failed_at=NOW, last_failed="00000001000000000000000A"),
        "error",
        "archiving",
        "fails since 2026-11-23 12:00 with 00000001000000000000000A",
    ),
    (slot(active=False, held_bytes=3 * 2**20), "warning", "slot standby", "keeps 3 MB"),
    (slot(active=False, held_bytes=11 * 2**30), "error", "slot standby", "keeps 11,264 MB"),
    (slot(active=False, held_bytes=None, wal_status="lost"), "error", "slot standby", "has lost"),
    (replica(behind_seconds=11.0), "warning", "standby nearby", "is 0:00:11 and 1 MB of write-ahead log behind"),
    (replica(behind_bytes=2**30, behind_seconds=None), "warning", "standby nearby", "is 1,024 MB of"),
    (replica(synchrony="async"), "error", "synchronous replication", "waits for nearby, and none of them"),
    ({"standby": (Standby(None, None, None, None),)}, "warning", "this standby", "has received nothing"),
    ({"standby": (Standby("1/0", "0/0", 2**30, 9.0),)}, "warning", "this standby", "has 1,024 MB"),
    ({"wraparound": (Wraparound("old", 1, 1, 0.3),)}, "warning", "database old", "used 30% of its transaction ids"),
    ({"wraparound": (Wraparound("old", 1, 1, 0.51),)}, "error", "database old", "used 51% of its transaction ids"),
    ({"backups": ()}, "error", "backups", "there is none"),
    ({"backups": None}, "note", "backups", "were not looked at"),
    ({"backups": None, "backups_fault": "there is no folder x"}, "error", "backups", "there is no folder x"),
    (saved(complete=False), "error", "backups", "there is none"),
    (saved(made_at=NOW - timedelta(hours=27)), "error", "backups", "the newest is of 2026-11-22 09:00 UTC"),
    ({"sees_all": False}, "note", "role kimera", "is not shown"),
    ({"unavailable": {"locks": "why not"}}, "note", "report locks", "could not be had"),
    ({"unavailable": {"locks": "why", "bloat": "why"}}, "note", "reports locks, bloat", "could not be had"),
]


def test_a_healthy_database_has_no_findings() -> None:
    assert doctor.diagnose(HEALTHY) == []


@pytest.mark.parametrize(("facts", "severity", "subject", "found"), CASES, ids=lambda value: str(value)[:40])
def test_a_fault_is_found_and_says_what_to_do(facts: dict[str, Any], severity: str, subject: str, found: str) -> None:
    findings = doctor.diagnose(replace(HEALTHY, **facts))
    (one,) = [one for one in findings if one.subject == subject and found in one.found]
    assert one.severity == severity
    assert one.advice
    assert "{" not in one.found + one.advice


def test_known_faults_say_where_they_are_described_and_which_releases_have_them() -> None:
    assert all(fault.source.startswith("https://") for fault in (*SERVER_FAULTS, *PGVECTOR_FAULTS))
    assert all(first < fixed for fault in SERVER_FAULTS for first, fixed in fault.releases.values())
    assert all(fault.since < fault.fixed for fault in PGVECTOR_FAULTS)


def test_what_is_just_below_a_limit_is_no_fault() -> None:
    fine: list[dict[str, Any]] = [
        {"checked": (replace(SMALL, serious=False),)},
        searches(searches=99, k=None, queries=None, recall=None, low=None, high=None, measured_at=None),
        {"pool_connections": 97},
        {"session": Session("kimera", False, 15, 15)},
        {"server": replace(HEALTHY.server, connections=79)},
        table(dead_rows=25_000),
        table(live_rows=49, analyzed_at=None, dead_rows=1000),
        {**table(live_rows=9_999), "vectors": ()},
        {"vectors": (), "building": ("geoid_states",)},
        {**vector("invalid"), "building": ("geoid_states",)},
        {**index(valid=False), "building": ("geoid_states",)},
        index(scans=0),
        {"bloat": (Bloat("idx", "t", 16 * 2**20, 7 * 2**20, 9 * 2**20, 0.56),)},
        {"bloat": (Bloat("idx", "t", 40 * 2**20, None, None, None),)},
        {"transactions": (replace(IDLE, idle_seconds=300.0),)},
        {"transactions": (replace(OPEN, open_seconds=3600.0),)},
        {"locks": (replace(WAITING, waiting_seconds=60.0),)},
        {"settings": {**HEALTHY.settings, "archive_command": "", "archive_library": "basic_archive"}},
        {"settings": {}},
        slot(active=False, held_bytes=None),
        replica(behind_seconds=None, behind_bytes=None),
        {**replica(synchrony="async"), **setting(synchronous_standby_names="")},
        {"wraparound": (Wraparound("old", 1, 1, 0.25),)},
        saved(made_at=NOW - timedelta(hours=26)),
        version("17.12", 170012),
        version("16.16", 160016),
        version("15.20", 150020),
        version("19.0", 190000),
        {"transport": replace(CLEAR, tls=True)},
        {"transport": replace(CLEAR, password=False)},
        *(
            {"transport": replace(CLEAR, host=host)}
            for host in ("", "/run", "@kimera", "localhost", "127.0.0.2", "::1")
        ),
    ]
    for facts in fine:
        assert doctor.diagnose(replace(HEALTHY, **facts)) == [], facts


def test_the_gravest_come_first() -> None:
    facts = replace(HEALTHY, sees_all=False, backups=(), **setting(data_checksums="off"))
    assert [one.severity for one in doctor.diagnose(facts)] == ["error", "warning", "note"]


def test_an_invalid_vector_index_is_an_error_and_does_not_count() -> None:
    findings = doctor.diagnose(replace(HEALTHY, **vector("invalid")))
    assert [(one.severity, one.subject) for one in findings] == [
        ("error", "index idx"),
        ("warning", "table geoid_states"),
    ]


@pytest.fixture
def conn(own_conn: Connection) -> Connection:
    return own_conn


def subjects(findings: list[Finding], severity: str) -> set[str]:
    return {one.subject for one in findings if one.severity == severity}


def test_a_new_database(conn: Connection) -> None:
    findings = doctor.examine(conn)
    server = monitoring.server(conn)
    versions = {f"PostgreSQL {server.version}", f"pgvector {server.pgvector}"}
    # Which of their faults are known depends on the wheels; that of PostgreSQL 15.5 does not.
    assert ("PostgreSQL 15.5" in subjects(findings, "error")) == (server.version == "15.5")
    careless = set() if conn.execute("SHOW fsync").fetchone() == ("on",) else {"fsync"}
    assert subjects(findings, "error") - versions == careless
    checksums = set() if conn.execute("SHOW data_checksums").fetchone() == ("on",) else {"data_checksums"}
    assert subjects(findings, "warning") - versions == {f"role {conn.info.user}"} | checksums
    unset = {"settings"} if any(one.serious for one in tuning.check(conn)) else set()
    jit = {"jit"} if conn.execute("SELECT pg_jit_available()").fetchone() == (True,) else set()
    assert subjects(findings, "note") == {"archiving", "backups", "report statements"} | unset | jit


def test_a_database_without_schema(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        errors = subjects(doctor.examine(conn), "error")
    assert errors >= {"pgvector", "schema"}


def test_a_plain_role_is_told_what_it_does_not_see(database: str, conn: Connection, role: str) -> None:
    with connected(database, user=role) as plain:
        findings = doctor.examine(plain)
        assert subjects(findings, "note") >= {f"role {role}", "report vectors"}
        assert f"role {role}" not in subjects(findings, "warning")
        grant(conn, "pg_monitor", role)
        assert f"role {role}" not in subjects(doctor.examine(plain), "note")


def test_limits_of_connections(database: str, conn: Connection, role: str) -> None:
    conn.execute(f"ALTER ROLE {role} CONNECTION LIMIT 14".encode())
    with connected(database, user=role) as plain:
        assert "pools" in subjects(doctor.examine(plain), "error")
        assert "pools" not in subjects(doctor.examine(plain, pool_connections=14), "error")
        assert "pools" in subjects(doctor.examine(plain, pool_connections=7, processes=3), "error")
    conn.execute(f"ALTER DATABASE {conn.info.dbname} CONNECTION LIMIT 5".encode())
    assert only(doctor.examine(conn), subject="pools").found.endswith("the limit of this database is 5")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None, True])
def test_numbers_that_cannot_be_are_refused(conn: Connection, wrong: Any) -> None:
    for name in ("pool_connections", "processes"):
        with pytest.raises(InvalidValue, match=name):
            doctor.examine(conn, **{name: wrong})


def test_sqlite_has_no_doctor(tmp_path: Path) -> None:
    with (
        SqlitePool(tmp_path / "file.db") as pool,
        pool.connection() as file,
        pytest.raises(UnsupportedByServer, match="monitoring needs PostgreSQL"),
    ):
        doctor.examine(file)


def test_indexes_and_statistics(conn: Connection) -> None:
    conn.execute("ALTER TABLE geoid_states SET (autovacuum_enabled = off)")
    fill(conn, 60)
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=5)
    metrics.insert_many(conn, [metrics.NewMetric(metric_name="one", metric_value=n, component="c") for n in (1, 2)])
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON system_metrics (metric_name)")
    conn.execute("UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'")
    conn.execute("INSERT INTO kimera_vector_indexes VALUES ('idx_geoid_vector', 3, 1) ON CONFLICT DO NOTHING")
    findings = doctor.examine(conn)
    assert subjects(findings, "error") >= {"index broken", "pgvector 0.8.0"}
    assert "never measured" in only(findings, subject="index idx_geoid_vector", severity="warning").found
    assert subjects(findings, "warning") >= {"extension vector"}
    # indexes.build has analysed its table; this one comes after it.
    conn.execute("CREATE TABLE fresh WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 60) AS n")
    until(lambda: "table fresh" in subjects(doctor.examine(conn), "warning"))


def test_settings_are_compared_with_the_recommendation(conn: Connection) -> None:
    conn.execute("SET maintenance_work_mem = '64MB'")
    large = only(doctor.examine(conn, memory=8 * 2**30), subject="settings")
    assert (large.severity, large.advice) == ("note", "kimera-sql config recommend, which gives the reasons")
    assert "maintenance_work_mem is 64MB (512MB)" in large.found
    small = [one.found for one in doctor.examine(conn, memory=2**30) if one.subject == "settings"]
    assert not any("maintenance_work_mem" in found for found in small)
    # Pools that leave nothing for work_mem are a finding, and no error.
    findings = doctor.examine(conn, processes=10_000_000)
    assert "settings" in subjects(findings, "note")
    assert "pools" in subjects(findings, "error")
    for wrong in (0, -1, 1.5, "8GB", 2**64):
        with pytest.raises(InvalidValue, match="memory"):
            doctor.examine(conn, memory=wrong)  # type: ignore[arg-type]


def test_a_slot_that_nobody_uses(conn: Connection) -> None:
    name = f"kimera_{uuid4().hex}"
    conn.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])
    try:
        assert f"slot {name}" in subjects(doctor.examine(conn), "warning")
    finally:
        conn.execute("SELECT pg_drop_replication_slot(%s)", [name])


@pytest.fixture
def careless(open_folder: Path, newest: Server) -> Iterator[Callable[..., str]]:
    """What starts a server with settings of the test's own."""
    with psycopg.connect(newest.conninfo) as conn:
        binaries = tools.find("initdb", conn).parent
    with own_server(binaries, open_folder) as start:
        yield start


def test_a_server_that_is_set_up_badly(careless: Callable[..., str]) -> None:
    conninfo = careless(
        fsync="off", full_page_writes="off", autovacuum="off", archive_mode="on", archive_command="false"
    )
    with psycopg.connect(conninfo, autocommit=True) as conn:
        assert subjects(doctor.examine(conn), "error") >= {"fsync", "full_page_writes", "autovacuum"}
        conn.execute("CREATE TABLE t AS SELECT 1 AS n")
        conn.execute("SELECT pg_switch_wal()")
        until(lambda: "archiving" in subjects(doctor.examine(conn), "error"))
        assert monitoring.archiver(conn).failed > 0
        assert monitoring.wal_files(conn).waiting > 0
    with psycopg.connect(careless(archive_mode="on"), autocommit=True) as conn:
        assert "without an archive_command" in only(doctor.examine(conn), subject="archiving").found


def test_a_backup_of_today_is_recent_and_tomorrow_it_is_not(conn: Connection, tmp_path: Path) -> None:
    none = only(doctor.examine(conn, backups=tmp_path), subject="backups")
    assert (none.severity, none.found) == ("error", "this database has no verified one of the last day: there is none")
    missing = only(doctor.examine(conn, backups=tmp_path / "nowhere"), subject="backups")
    assert missing.found == f"there is no folder {tmp_path / 'nowhere'}"
    backup.make_dump(conn, tmp_path)
    facts = doctor.gather(conn, backups=tmp_path)
    assert "backups" not in {one.subject for one in doctor.diagnose(facts)}
    tomorrow = replace(facts, now=facts.now + timedelta(hours=27))
    assert "the newest is of" in only(doctor.diagnose(tomorrow), subject="backups").found
    (dumped,) = (tmp_path / "dumps").glob("*.dump")
    dumped.with_suffix(".json").unlink()
    assert "there is none" in only(doctor.examine(conn, backups=tmp_path), subject="backups").found


def test_doctor_exits_with_1_for_an_error_alone(database: str, conn: Connection, tmp_path: Path) -> None:
    severities = [one.severity for one in doctor.examine(conn)]
    ran = run("doctor", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (1 if "error" in severities else 0, "")
    assert "\nNOTE     backups: were not looked at\n         -> give their folder" in ran.stdout
    assert ran.stdout.count("\nWARNING  ") + ran.stdout.startswith("WARNING") == severities.count("warning")
    assert ran.stdout.splitlines()[-1].endswith(
        f"{severities.count('warning')} warnings, {severities.count('note')} notes"
    )
    crowded = run("doctor", "--processes", "7", DATABASE_URL=database)
    assert crowded.returncode == 1
    assert "ERROR    pools: they can open 105 connections, max_connections without the reserved is 97" in crowded.stdout
    told = run("doctor", "--backups", str(tmp_path), "--json", DATABASE_URL=database)
    assert told.returncode == 1
    assert {"severity", "subject", "found", "advice"} == json.loads(told.stdout)[0].keys()
    assert "backups" in {one["subject"] for one in json.loads(told.stdout)}
    refused = run("doctor", "--processes", "0", DATABASE_URL=database)
    assert (refused.returncode, refused.stderr) == (1, "kimera-sql: --processes: 0 is not within 1 to 2147483647\n")


@pytest.mark.parametrize("size", ["8", "GB", "-8GB", "8 0GB", "8PB", ""])
def test_a_size_of_memory_that_cannot_be_is_wrong_usage(size: str) -> None:
    ran = run("doctor", f"--ram={size}")
    assert ran.returncode == 2
    assert "argument --ram: expected a size such as 8GB" in ran.stderr


def test_the_memory_can_be_given(database: str) -> None:
    ran = run("doctor", "--ram", "8TB", DATABASE_URL=database)
    assert (
        "NOTE     settings: are more than twice or less than half of what is recommended (in brackets): " in ran.stdout
    )
    assert "shared_buffers is 128MB (2TB)" in ran.stdout
    tiny = run("doctor", "--ram", "1MB", DATABASE_URL=database)
    assert (tiny.returncode, tiny.stdout) == (1, "")
    assert tiny.stderr.startswith("kimera-sql: --ram: 1MB is not within 128MB to 16TB")


def test_the_environments_pool_counts(database: str) -> None:
    ran = run("doctor", DATABASE_URL=database, KIMERA_POOL_SIZE="90", KIMERA_POOL_OVERFLOW="20")
    assert "pools: they can open 110 connections" in ran.stdout


def test_a_role_without_rights_gets_no_traceback(database: str, role: str) -> None:
    ran = run("doctor", DATABASE_URL=make_conninfo(database, user=role))
    assert ran.returncode in (0, 1)
    assert ran.stderr == ""
    assert f"NOTE     role {role}: is not shown what other roles' sessions do" in ran.stdout
