"""What `monitor --prometheus` writes, and the alerts and the dashboard that are made of it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from commands import COMMAND, environment, run
from fix_clusters import Cluster, cluster, standby, start, stop
from fix_monitoring import connected, extension, fill, keep, only, until
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strategies import unit

from kimera_sql import Settings, geoids, migrate
from kimera_sql.errors import UnsupportedByServer
from kimera_sql.ops import backup, monitoring
from kimera_sql.ops.monitoring import Sample
from kimera_sql.search import indexes, recall
from kimera_sql.sql.postgres import Connection
from kimera_sql.sqlite import SqlitePool

pytestmark = pytest.mark.slow

DOCS: Final = Path(__file__).parents[2] / "docs"
ALERTS: Final = DOCS / "prometheus-alerts.yml"
DASHBOARD: Final = DOCS / "grafana-dashboard.json"


@pytest.fixture
def conn(own_conn: Connection) -> Connection:
    return own_conn


@contextmanager
def statements() -> Iterator[Cluster]:
    """A server with our tables that keeps statistics of statements."""
    with cluster("postgres18") as server:
        data = server.folder / "data"
        with (data / "postgresql.conf").open("a") as conf:
            conf.write("shared_preload_libraries = 'pg_stat_statements'\n")
        stop(server.binaries, data)
        start(server.binaries, data, server.folder / "log")
        with connected(server.conninfo) as conn:
            conn.execute("CREATE EXTENSION pg_stat_statements")
            migrate(conn)
        yield server


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the command writes where there is something for every report: on a primary that archives, with a standby."""
    with statements() as primary, standby(primary), connected(primary.conninfo) as conn:
        fill(conn, 50)
        indexes.build(conn, "geoid_states")
        recall.tune(conn, "geoid_states", sample=20)
        keep(conn, *(unit(seed) for seed in range(100)))
        recall.check(conn, "geoid_states")
        conn.execute("SELECT pg_create_physical_replication_slot('held', true)")
        backup.make_dump(conn, primary.backups)
        primary.switch()
        until(lambda: only(monitoring.replicas(conn), application="reader").behind_bytes is not None)
        until(lambda: monitoring.archiver(conn).archived)
        file = tmp_path_factory.mktemp("textfile") / "kimera.prom"
        ran = run(
            "monitor", "--prometheus", str(file), "--backups", str(primary.backups), DATABASE_URL=primary.conninfo
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        yield file.read_text(encoding="utf-8")


NAME = re.compile(r"[a-z][a-z0-9_]*")
SAMPLE = re.compile(r'(?P<name>[a-z0-9_]+)(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (?P<value>\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Read Prometheus' text format 0.0.4, strictly: each metric in one piece, with its HELP and TYPE before it."""
    assert text.endswith("\n")
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    helped, typed, current = set(), dict[str, str](), ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, current, said = line.split(" ", 3)
            assert NAME.fullmatch(current)
            assert current not in helped
            assert said
            helped.add(current)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert name not in typed
            assert kind in ("counter", "gauge")
            assert name.endswith("_total") == (kind == "counter")
            typed[name] = kind
        elif not line.startswith("# "):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] == current
            assert current in typed
            labels = tuple(
                (name, re.sub(r'\\["\\n]', lambda found: ESCAPES[found[0]], value))
                for name, value in LABEL.findall(sample["labels"] or "")
            )
            assert len(dict(labels)) == len(labels), line
            assert (current, labels) not in found
            found[current, labels] = float(sample["value"])
    assert helped == typed.keys() == {name for name, _ in found}
    return found


def common(conn: Connection) -> tuple[tuple[str, str], ...]:
    """Return the labels of every sample of the database."""
    return ("database", conn.info.dbname), ("server", f"{conn.info.host}:{conn.info.port}")


def test_prometheus_gets_every_number(conn: Connection) -> None:
    ours = common(conn)
    conn.execute('CREATE TABLE "a ""quoted"" \\ \n name" (n integer)')
    samples = monitoring.samples(monitoring.collect(conn))
    parsed = parse(monitoring.exposition(samples, monitoring.target_labels(conn)))
    assert parsed == {(one.name, (*ours, *one.labels.items())): one.value for one in samples}
    assert (
        parsed[
            "kimera_table_live_rows",
            (
                *ours,
                ("table", '"a ""quoted"" \\ \n name"'),
            ),
        ]
        == 0
    )
    assert parsed["kimera_server_standby", ours] == 0
    assert parsed["kimera_blocked_sessions", ours] == 0
    version = conn.info.parameter_status("server_version") or ""
    assert parsed["kimera_server_info", (*ours, ("version", version), ("pgvector", extension(conn)))] == 1
    assert parsed["kimera_up", ours] == 1
    assert abs(parsed["kimera_collected_timestamp_seconds", ours] - time.time()) < 60
    assert monitoring.exposition([], {}) == ""


def test_rows_with_the_same_labels_make_one_sample() -> None:
    replica = monitoring.Replica("a", None, "streaming", "async", 5, None)
    later = monitoring.Replica("a", None, "streaming", "async", 7, None)
    assert monitoring.samples({"replicas": [replica, later]}) == [
        Sample("kimera_report_available", 1, {"report": "replicas"}),
        Sample("kimera_replica_behind_bytes", 7, {"application": "a", "address": ""}),
    ]


def write(path: Path, conninfo: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what the command writes into *path* of a database."""
    ran = run("monitor", "--prometheus", str(path), DATABASE_URL=conninfo)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    return parse(path.read_text(encoding="utf-8"))


def test_two_databases_in_a_folder_have_no_number_in_common(database: str, empty_database: str, tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.prom", database), write(tmp_path / "other.prom", empty_database)
    assert len(one) > len(other) > 50
    assert not one.keys() & other.keys()
    # Whatever else the two have in common, each is told by labels that no report uses for something else.
    names = {dict(labels)["database"] for found in (one, other) for _, labels in found}
    assert names == {conninfo_to_dict(conninfo)["dbname"] for conninfo in (database, empty_database)}


def test_two_servers_with_a_database_of_one_name_are_told_apart(database: str) -> None:
    settings = [Settings(credentials={"host": host, "dbname": "kimera_swm"}) for host in ("one", "other")]
    assert [monitoring.configured_labels(one)["server"] for one in settings] == ["one:5432", "other:5432"]
    with connected(database) as conn:
        assert monitoring.target_labels(conn) == monitoring.configured_labels(Settings(database_url=database))


def test_sqlite_has_no_labels(tmp_path: Path) -> None:
    assert monitoring.configured_labels(Settings()) == {}
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as file, pytest.raises(UnsupportedByServer):
        monitoring.target_labels(file)


def test_the_file_is_replaced_in_one_step_and_can_be_read_by_others(database: str, tmp_path: Path) -> None:
    path = tmp_path / "kimera.prom"
    path.write_text("before")
    with path.open() as reader:
        write(path, database)
        assert reader.read() == "before"
    assert os.listdir(tmp_path) == ["kimera.prom"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(database: str, tmp_path: Path) -> None:
    (tmp_path / "folder.prom").mkdir()
    for path in (tmp_path / "folder.prom", tmp_path / "missing/kimera.prom"):
        ran = run("monitor", "server", "--prometheus", str(path), DATABASE_URL=database)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert re.fullmatch(rf"kimera-sql: --prometheus {path}: [A-Z][a-z ]+\n", ran.stderr)
    assert os.listdir(tmp_path) == ["folder.prom"]


def test_what_is_printed_is_what_is_written(database: str, tmp_path: Path) -> None:
    ran = run("monitor", "--prometheus", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (0, "")
    printed = parse(ran.stdout)
    names = [{name for name, _ in found} for found in (printed, write(tmp_path / "kimera.prom", database))]
    # What was not read before has no ratio of hits.
    assert names[0] | {"kimera_table_cache_hit_ratio"} == names[1] | {"kimera_table_cache_hit_ratio"}
    assert re.search(r"^# queries: pg_stat_statements is not installed", ran.stdout, re.MULTILINE)
    available = {dict(labels)["report"]: number for (name, labels), number in printed.items() if "available" in name}
    assert set(available) == monitoring.MEASURED
    assert (available["queries"], available["locks"]) == (0, 1)


@pytest.mark.parametrize("word", ["locks", "kimera.txt"])
def test_a_file_with_another_name_is_refused(word: str) -> None:
    ran = run("monitor", "--prometheus", word)
    assert ran.returncode == 2
    assert f"{word!r} does not end in .prom" in ran.stderr


def test_a_server_that_is_down_is_written_too(database: str, tmp_path: Path) -> None:
    path = tmp_path / "kimera.prom"
    up = write(path, database)
    (labels,) = (labels for name, labels in up if name == "kimera_up")
    # The same place, and nobody there
    target = conninfo_to_dict(database)
    ran = run("monitor", "--prometheus", str(path), DATABASE_URL=make_conninfo(database, port=1))
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: no database could be reached")
    down = parse(path.read_text())
    gone = (("database", str(target["dbname"])), ("server", f"{target['host']}:1"))
    assert labels[0] == gone[0]
    assert down == {("kimera_up", gone): 0, ("kimera_report_available", (*gone, ("report", "server"))): 0}


def test_a_server_that_goes_down_meanwhile_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / "kimera.prom"
    with cluster("postgres18") as server:
        data = server.folder / "data"
        with subprocess.Popen(
            [*COMMAND, "monitor", "locks", "--prometheus", path, "--watch", "0.1"],
            env=environment(DATABASE_URL=server.conninfo),
            stderr=subprocess.PIPE,
            text=True,
        ) as watching:
            until(path.exists)
            assert "kimera_blocked_sessions" in path.read_text()
            stop(server.binaries, data)
            _, stderr = watching.communicate(timeout=60)
        start(server.binaries, data, server.folder / "log")
    assert watching.returncode == 1
    assert "Traceback" not in stderr
    assert [number for (name, _), number in parse(path.read_text()).items() if name == "kimera_up"] == [0], stderr


def test_backups_that_cannot_be_read_are_said_to_be_so(database: str, tmp_path: Path) -> None:
    ran = run("monitor", "server", "--prometheus", "--backups", str(tmp_path / ("x" * 300)), DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (0, "")
    numbers = [number for (name, labels), number in parse(ran.stdout).items() if ("report", "backups") in labels]
    assert numbers == [0]
    assert "kimera_backup_last" not in ran.stdout
    assert re.search("^# backups: .*File name too long|^# backups: .*\\.\\.\\.$", ran.stdout, re.MULTILINE)


def test_only_a_verified_backup_counts(tmp_path: Path) -> None:
    def last() -> dict[str, float]:
        numbers = monitoring.samples({"backups": monitoring.backups(tmp_path)})
        return {one.labels["kind"]: one.value for one in numbers if one.name.startswith("kimera_backup")}

    assert last() == {"dump": 0, "base": 0}
    (tmp_path / "base/kimera_base_20260101_000000").mkdir(parents=True)
    (tmp_path / "base/kimera_base_20260101_000000/backup_manifest").touch()
    (tmp_path / "base/kimera_base_20260102_000000").mkdir()
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps/kimera_full_20260103_000000.dump").touch()
    assert last() == {"dump": 0, "base": 1767225600}


def test_what_is_in_the_file_is_true(everything: str) -> None:
    found = parse(everything)

    def numbers(name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the numbers of a metric by their labels, without those that every one has."""
        return {labels[2:]: number for (metric, labels), number in found.items() if metric == name}

    assert numbers("kimera_up") == {(): 1}
    now = numbers("kimera_collected_timestamp_seconds")[()]
    last = numbers("kimera_backup_last_timestamp_seconds")
    assert last[("kind", "base"),] == 0
    for moment in (last[("kind", "dump"),], *numbers("kimera_archived_last_timestamp_seconds").values()):
        assert 0 <= now - moment < 600
    recalls = numbers("kimera_vector_index_recall_ratio")
    assert {dict(labels)["k"] for labels in recalls} == {"10", "100"}
    measured = numbers("kimera_vector_index_recall_measured_timestamp_seconds")
    assert measured.keys() == recalls.keys()
    assert all(0 <= now - moment < 600 for moment in measured.values())
    table = (("table", "geoid_states"),)
    assert numbers("kimera_sampled_searches") == numbers("kimera_sampled_recall_queries") == {table: 100}
    low, middle, high = (numbers(f"kimera_sampled_recall_{name}ratio")[table] for name in ("low_", "", "high_"))
    assert 0.9 < low < middle == high == 1
    for name in ("kimera_sampled_last_timestamp_seconds", "kimera_sampled_recall_measured_timestamp_seconds"):
        assert 0 <= now - numbers(name)[table] < 600
    calls = numbers("kimera_query_calls_total")
    assert len(calls) == 20
    assert all(re.fullmatch(r"[a-z]+\.\w+", dict(labels)["query"]) for labels in calls)
    assert numbers("kimera_query_seconds_total").keys() == numbers("kimera_query_rows_total").keys() == calls.keys()


def test_a_named_query_counts_once_whoever_ran_it() -> None:
    with statements() as server, connected(server.conninfo) as conn:
        conn.execute("CREATE ROLE other LOGIN SUPERUSER")
        conn.execute("SELECT pg_stat_statements_reset()")
        fill(conn, 3)
        geoids.latest(conn, 2)
        with connected(server.conninfo, user="other") as other:
            geoids.latest(other, 2)
            geoids.latest(other, 1)
        used = only(monitoring.queries(conn), query="geoids.find")
        assert (used.calls, used.rows) == (3, 5)
        assert used.total_seconds > 0
        assert len(monitoring.queries(conn, limit=1)) == 1


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bkimera_\w+", text))


@pytest.mark.parametrize("page", [ALERTS, DASHBOARD], ids=lambda page: page.stem)
def test_alerts_and_dashboard_use_metrics_that_there_are(page: Path, everything: str) -> None:
    used = metrics_in(page.read_text(encoding="utf-8"))
    assert len(used) > 10
    assert used <= {name for name, _ in parse(everything)}


@pytest.mark.needs("promtool")
def test_promtool_finds_no_fault_with_the_metrics(everything: str) -> None:
    check = subprocess.run(["promtool", "check", "metrics"], input=everything, capture_output=True, text=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.needs("promtool")
def test_promtool_understands_the_alerts_and_the_dashboard(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]
    assert len(asked) >= len(panels) > 10
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    dashboard = tmp_path / "dashboard.yml"
    dashboard.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    for page in (ALERTS, dashboard):
        check = subprocess.run(["promtool", "check", "rules", page], capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr


NOW: Final = 800 * 3600
"""When the alerts are looked at, after 800 hours."""

CASES: Final = {
    "KimeraDown": ("kimera_up", 0, 1),
    "KimeraNotMonitored": ("kimera_other", 1, None),
    "KimeraMetricsStale": ("kimera_collected_timestamp_seconds", NOW - 1000, NOW - 800),
    "KimeraReportMissing": ('kimera_report_available{report="vectors"}', 0, 1),
    "KimeraConnectionsUsedUp": ("kimera_server_connections", 81, 80),
    "KimeraSessionBlocked": ("kimera_blocked_longest_seconds", 61, 60),
    "KimeraLongTransaction": ("kimera_long_transaction_longest_seconds", 3601, 3600),
    "KimeraWraparound": ("kimera_wraparound_used_ratio", 0.51, 0.5),
    "KimeraChecksumFailures": ("kimera_database_checksum_failures_total", 1, 0),
    "KimeraBackupOld": ('kimera_backup_last_timestamp_seconds{kind="dump"}', 0, NOW - 25 * 3600),
    "KimeraArchivingFails": ("kimera_archiving_failing", 1, 0),
    "KimeraReplicaBehind": ("kimera_replica_behind_bytes", 2**31, 2**30),
    "KimeraSlotHoldsWal": ("kimera_slot_held_bytes", 2**34, 10 * 2**30),
    "KimeraIndexInvalid": ("kimera_index_valid", 0, 1),
    "KimeraVectorIndexFault": ('kimera_vector_index_fault{fault="aged"}', 1, 0),
    "KimeraRecallLow": ('kimera_vector_index_recall_ratio{k="10"}', 0.9, 0.95),
    "KimeraRecallOld": ("kimera_vector_index_recall_measured_timestamp_seconds", 0, NOW - 86400),
    "KimeraSampledRecallLow": ("kimera_sampled_recall_high_ratio", 0.949, 0.95),
    "KimeraSampledRecallOld": ("kimera_sampled_recall_measured_timestamp_seconds", NOW - 8 * 86400, NOW - 7 * 86400),
}
"""For each alert a metric, a value of it that sets the alert off, and one that does not."""


def unit_test(alert: str, series: str, value: float | None, fires: Iterable[str]) -> dict[str, Any]:
    """Return a test for promtool: with *value* all along, *fires* is what is set off in the end."""
    given = {
        "kimera_up": 1,
        "kimera_server_max_connections": 100,
        "kimera_sampled_last_timestamp_seconds": NOW,
        'kimera_backup_last_timestamp_seconds{kind="base"}': 0,
    }
    if alert == "KimeraNotMonitored" and value is not None:
        del given["kimera_up"]
    if alert != "KimeraBackupOld":
        given['kimera_backup_last_timestamp_seconds{kind="base"}'] = NOW
    if value is not None:
        given[series] = value  # type: ignore[assignment]
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in fires]
    return {
        "interval": "1h",
        "input_series": [{"series": name, "values": f"{number}x800"} for name, number in given.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "800h",
                "exp_samples": samples,
            }
        ],
    }


@pytest.mark.needs("promtool")
def test_each_alert_is_set_off_by_what_it_is_for_and_by_nothing_else(tmp_path: Path) -> None:
    assert re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8")) == list(CASES)
    tests = [
        unit_test(alert, series, value, fires)
        for alert, (series, bad, good) in CASES.items()
        for value, fires in ((bad, [alert]), (good, []))
    ]
    page = tmp_path / "tests.yml"
    page.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1h", "tests": tests}))
    check = subprocess.run(["promtool", "test", "rules", page], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
