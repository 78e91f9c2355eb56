"""verify as a user meets it: the guide's example, the stub, the command and pytest's fixture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg
import pytest
from commands import run
from fix_verify import RECORDS, STATE, change, query

from kimera_sql import add_adapters, geoids
from kimera_sql.verify import verify_queries

pytestmark = pytest.mark.slow

# What the guide shows a user
GUIDE_SQL, GUIDE_RECORDS, GUIDE_QUERIES = re.findall(
    r"```(?:sql|python)\n(.*?)```",
    (Path(__file__).parents[2] / "docs/queries.md").read_text().partition("## A query of your own")[2],
    re.DOTALL,
)[:3]

USE = """\
from uuid import UUID
import psycopg
from queries import queries

def ids(conn: psycopg.Connection) -> list[UUID]:
    return [dream.id for dream in queries.dreams.by_phase(conn, phase="rem", limit=10)]
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """What a user writes: a query, its dataclass, and the line that loads it."""
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql/dreams.sql").write_text(GUIDE_SQL)
    (tmp_path / "records.py").write_text(GUIDE_RECORDS)
    (tmp_path / "queries.py").write_text(GUIDE_QUERIES)
    (tmp_path / "use.py").write_text(USE)
    return tmp_path


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_"))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**kept, **variables}, capture_output=True, text=True, check=False
    )


CLI: Final = ("-c", "import sys; from kimera_sql.cli import main; sys.exit(main())")
VERIFY: Final = (*CLI, "verify", "sql", "--records", "records", "--stub", "queries.pyi")


def test_a_query_of_ones_own_is_typed_verified_and_runs(app: Path, database: str) -> None:
    updated = command(app, *VERIFY, "--update", DATABASE_URL=database)
    assert (updated.returncode, updated.stderr) == (0, "")
    assert updated.stdout.splitlines()[-1] == "1 queries, no fault against the server"
    assert {path.name for path in (app / "sql").iterdir()} == {"dreams.sql", "snapshot.txt"}
    assert command(app, *VERIFY, "--offline").returncode == 0
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert(
            conn,
            replace(STATE, metadata={"phase": "rem"}),
        )
    script = (
        "import sys, psycopg\nfrom use import queries\nwith psycopg.connect(sys.argv[1]) as conn:\n"
        "    (dream,) = queries.dreams.by_phase(conn, phase='rem', limit=10)\n"
        "    print(type(dream).__name__, dream.entropy)\n"
    )
    ran = command(app, "-c", script, database)
    assert (ran.stdout, ran.stderr) == ("Dream 0.5\n", "")


@pytest.mark.ends
def test_the_stub_gives_a_type_checker_the_functions(app: Path, database: str) -> None:
    assert command(app, *VERIFY, "--update", DATABASE_URL=database).returncode == 0
    stub = (app / "queries.pyi").read_text()
    assert "    def by_phase(self, conn: Connection, /, *, phase: str, limit: int) -> list[Dream]:\n" in stub
    checked = command(app, "-m", "mypy", "--strict", "use.py", "queries.pyi")
    assert checked.returncode == 0, checked.stdout
    change(app / "use.py", "phase=", "phases=")
    change(app / "use.py", "limit=10", "limit='10'")
    checked = command(app, "-m", "mypy", "--strict", "use.py")
    assert 'Unexpected keyword argument "phases"' in checked.stdout
    change(app / "queries.pyi", "limit: int", "limit: str")
    stale = command(app, *VERIFY, "--offline")
    assert stale.returncode == 1
    assert "queries.pyi:" in stale.stdout
    assert "it is not what was found now" in stale.stdout


@pytest.mark.ends
def test_the_stub_of_asynchronous_queries(app: Path, database: str) -> None:
    (app / "queries.py").write_text(GUIDE_QUERIES.replace("kimera_sql import", "kimera_sql.aio import"))
    (app / "use.py").write_text(
        "from kimera_sql.aio.sql import Connection\nfrom queries import queries\nfrom records import Dream\n\n\n"
        "async def first(conn: Connection) -> Dream:\n"
        "    return (await queries.dreams.by_phase(conn, phase='rem', limit=10))[0]\n"
    )
    arguments = (*CLI, "verify", "sql", "--records", "records", "--async-stub", "queries.pyi")
    assert command(app, *arguments, "--update", DATABASE_URL=database).returncode == 0
    assert "    async def by_phase(self, conn: Connection, /, *, phase: str" in (app / "queries.pyi").read_text()
    checked = command(app, "-m", "mypy", "--strict", "use.py", "queries.pyi")
    assert checked.returncode == 0, checked.stdout
    change(app / "use.py", "(await queries", "(queries")
    assert "not indexable" in command(app, "-m", "mypy", "--strict", "use.py").stdout


def test_every_kind_of_result_has_a_type_in_the_stub(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "dreams.sql").write_text(
        query("SELECT id, timestamp, entropy FROM geoid_states WHERE id = :id", "returns: Dream", name="one(id)^")
        + query("SELECT count(*) AS count FROM geoid_states", "returns: int", name="count()$")
        + query("SELECT creation_context FROM geoid_states", "returns: str | None", name="contexts()")
        + query("SELECT id, timestamp, entropy, 1 AS n FROM geoid_states", "returns: Dream, n int", name="ranked()")
        + query("SELECT 1 AS a, metadata FROM geoid_states", "returns: a int, metadata dict", name="pairs()")
        + query("SELECT 1 AS a", name="untold()$")
        + query("DELETE FROM geoid_states WHERE timestamp < :before AND tags @> :tags", name="prune(before, tags)!",)
        + query("UPDATE geoid_states SET entropy = :entropy, metadata = :metadata", "takes: NewDream",
                name="change(entropy, metadata)!")
        + query("SELECT id FROM geoid_states WHERE :since::timestamptz IS NULL OR timestamp > :since", "returns: UUID",
                "takes: since datetime | None", name="since(since)")
        + query("COPY system_metrics (metric_name) FROM STDIN (FORMAT BINARY)", "types: text", name="into()#")
    )  # fmt: skip
    report = verify_queries(conn_newest, folder, RECORDS, stub=tmp_path / "queries.pyi", update=True)
    assert [str(fault) for fault in report.faults] == []
    stub = (tmp_path / "queries.pyi").read_text()
    for signature in (
        "one(self, conn: Connection, /, *, id: UUID) -> Dream | None",
        "count(self, conn: Connection, /) -> int | None",
        "contexts(self, conn: Connection, /) -> list[str | None]",
        "ranked(self, conn: Connection, /) -> list[tuple[Dream, int]]",
        "pairs(self, conn: Connection, /) -> list[tuple[int, dict[str, Any]]]",
        "untold(self, conn: Connection, /) -> Any",
        "prune(self, conn: Connection, /, *, before: datetime, tags: list[str]) -> int",
        "change(self, conn: Connection, /, *, entropy: float, metadata: dict[str, Any]) -> int",
        "since(self, conn: Connection, /, *, since: datetime | None) -> list[UUID]",
    ):
        assert f"    def {signature}:\n" in stub
    assert "    into: Query\n" in stub
    compile(stub, "queries.pyi", "exec")


def test_the_command_tells_all_faults_and_exits_with_1(app: Path, database: str) -> None:
    change(app / "sql/dreams.sql", "entropy FROM", "entropie FROM")
    plain = command(app, *VERIFY, DATABASE_URL=database)
    assert (plain.returncode, plain.stderr) == (1, "")
    assert plain.stdout.startswith('sql/dreams.sql:4:12: by_phase: the server refuses it: column "entropie" does not')
    assert plain.stdout.endswith("1 queries, 1 fault against the server\n")
    told = command(app, *VERIFY, "--json", DATABASE_URL=database)
    assert told.returncode == 1
    (fault,) = json.loads(told.stdout)["faults"]
    assert (fault["file"], fault["line"], fault["column"], fault["query"]) == ("sql/dreams.sql", 4, 12, "by_phase")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "nothing"), "kimera-sql: nothing has no .sql files"),
        (("verify", "sql", "--records", "nowhere"), "kimera-sql: --records nowhere: No module named 'nowhere'"),
        (("verify", "sql", "--offline"), "kimera-sql: there is no sql/snapshot.txt to compare with"),
        (("verify", "sql", "--offline", "--update"), "kimera-sql: the snapshot is written from what a server says"),
        (("verify", "--stub", "queries.pyi"), "kimera-sql: a stub is for a folder of queries of your own: name it"),
        (("queries", "nothing"), "kimera-sql: nothing has no .sql files"),
        (("verify", "sql/dreams.sql"), "kimera-sql: sql/dreams.sql has no .sql files"),
        (
            ("verify", "sql", "--records", "records", "--stub", "no/where.pyi", "--update"),
            "kimera-sql: no/where.pyi cannot be written: No such file or directory",
        ),
    ],
)
def test_a_wrong_command_says_why(app: Path, database: str, arguments: tuple[str, ...], said: str) -> None:
    ran = command(app, *CLI, *arguments, DATABASE_URL=database)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(said)


def test_verify_takes_no_sqlite_file_for_a_server(tmp_path: Path) -> None:
    ran = command(tmp_path, *CLI, "verify")
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: this command needs a PostgreSQL server, and none is configured: ")
    assert list(tmp_path.iterdir()) == []


def test_the_queries_are_listed() -> None:
    ran = run("queries")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "geoids.vector_of(id)$ -> Vector\n    The vector of a state.\n" in ran.stdout
    assert "geoids.copy_in()#\n    Add many states.\n" in ran.stdout
    assert "(postgres alone)" in ran.stdout
    listed = {one["name"]: one for one in json.loads(run("queries", "--json").stdout)}
    assert listed["metrics.prune"]["parameters"] == ["older_than", "batch"]
    assert listed["metrics.prune"]["dialects"] == ["postgres", "sqlite"]


FIXTURE_TEST = """\
def test_queries(kimera_verify):
    kimera_verify("sql", "records"{conninfo})
"""


@pytest.mark.ends
def test_the_fixture_fails_a_test_with_every_fault(app: Path, database: str) -> None:
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py")
    (app / "test_app.py").write_text(FIXTURE_TEST.format(conninfo=f", conninfo={database!r}"))
    passed = command(app, *pytest_)
    assert passed.returncode == 0, passed.stdout
    change(app / "sql/dreams.sql", "entropy FROM", "entropie FROM")
    failed = command(app, *pytest_)
    assert failed.returncode == 1
    assert "sql/dreams.sql:4:12: by_phase: the server refuses it" in failed.stdout
    (app / "test_app.py").write_text(FIXTURE_TEST.format(conninfo=""))
    assert "there is no sql/snapshot.txt" in command(app, *pytest_).stdout
