"""What README.md and docs/ show is so: commands are understood and run, examples run, calls fit their functions."""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from commands import environment, run
from fix_monitoring import keep
from psycopg.conninfo import make_conninfo
from strategies import unit

import kimera_sql
from kimera_sql import Settings, SqlitePool, add_adapters, cli, embedded, geoids, indexes, migrate

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

ELSEWHERE: Final = {
    "--dsn service=kimera_": "tests/ops/test_operations.py follows that page from its beginning to its end",
    "adopt": "it is for a database that kimera_sql did not make",
    "backup archive-command": "needs a folder of the server's user",
    "backup base": "needs a server that archives",
    "demo": "takes long",
    "embeddings drop": "there is nothing to drop before a renewal",
    "embeddings renew": "needs a function of your own; tests/cli/test_cli_embeddings.py has one",
    "load": "needs the file that unload writes",
    "monitor connections --watch": "goes on until it is stopped",
    "recover": "needs a server that archives",
    "scale": "needs a cluster of Citus; tests/ops/test_citus.py has one",
    "verify --update": "writes the snapshot of the shipped queries",
    "verify sql": "needs the folder that the page makes",
}
"""Commands, by their beginning, that are not run here but in the tests of what they do, and why."""


def blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of code of a page: their language, empty where none is said, and their text."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n)+", fence.sub("", page), re.MULTILINE)
    return [*fence.findall(page), *(("", code) for code in indented)]


def commands() -> list[tuple[str, ...]]:
    """The arguments of every command line of kimera-sql, each once, without what a shell does with its output."""
    found = []
    for page in PAGES.values():
        for _, code in blocks(page):
            for line in code.replace("\\\n", " ").splitlines():
                if re.match(r" *(\w+=\S+ +)*kimera-sql ", line):
                    words = shlex.split(line.replace("/var/backups/kimera", "/backups"), comments=True)
                    begin = words.index("kimera-sql") + 1
                    end = next((place for place, word in enumerate(words) if word in ("|", ">")), None)
                    found.append(tuple(words[begin:end]))
    return list(dict.fromkeys(found))


def undefined(code: str) -> set[str]:
    """The names that a block of Python uses and does not define."""
    used, defined = set(), {*dir(builtins)}
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(name, ast.Load()):
                used.add(name)
            case ast.Name(name) | ast.arg(name) | ast.FunctionDef(name) | ast.ClassDef(name):
                defined.add(name)
            case ast.alias(name, other):
                defined.add(other or name)
    return used - defined


COMMANDS: Final = commands()
RUN: Final = [command for command in COMMANDS if not shlex.join(command).startswith(tuple(ELSEWHERE))]
PYTHON: Final = {name: [code for kind, code in blocks(page) if kind == "python"] for name, page in PAGES.items()}
# What loads a folder of queries needs that folder, and is run where the commands above are that need it.
COMPLETE: Final = [code for page in PYTHON.values() for code in page if not undefined(code) and "sql.load(" not in code]


@pytest.mark.parametrize("command", COMMANDS, ids=shlex.join)
def test_a_command_is_understood(command: tuple[str, ...]) -> None:
    assert callable(cli.parse(command).run)


@pytest.mark.parametrize("beginning", ELSEWHERE)
def test_what_is_not_run_is_there(beginning: str) -> None:
    assert any(shlex.join(command).startswith(beginning) for command in COMMANDS)


DATABASE: Final = "kimera_test"


def fill(conn: Any) -> None:
    news = (geoids.NewGeoid(state_vector=unit(n), entropy=0, coherence_factor=0, energy_level=0) for n in range(50))
    geoids.insert_many(conn, news)


@dataclass(frozen=True)
class Site:
    """A server: a superuser's conninfo, an index of its filled database template, and a dump of a copy, DATABASE."""

    conninfo: str
    index: str
    dump: Path


@contextmanager
def copy_of_template(conninfo: str) -> Iterator[str]:
    """A database always of the same name, so that what a command finds in the folder of backups is of it."""
    # Not the database of conninfo, which a command replaces
    admin = make_conninfo(conninfo, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template".encode())
        try:
            yield make_conninfo(conninfo, dbname=DATABASE)
        finally:
            conn.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with embedded.server() as conninfo:
        conninfo = make_conninfo(conninfo, user="postgres")
        with psycopg.connect(conninfo, autocommit=True) as conn:
            conn.execute("CREATE DATABASE template")
        with psycopg.connect(conninfo, dbname="template", autocommit=True) as conn:
            add_adapters(conn)
            migrate(conn)
            fill(conn)
            index = indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=2).name
            keep(conn, *(unit(n) for n in range(100)))
        folder = tmp_path_factory.mktemp("backups")
        with copy_of_template(conninfo) as copy:
            run("backup", "dump", "--dir", str(folder), DATABASE_URL=copy)
        (dump,) = folder.glob("dumps/*.dump")
        yield Site(conninfo, index, dump)


@pytest.fixture
def _place(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder and a database of the command's own are where it finds its data."""
    for variable in set(os.environ) - set(environment()):
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    with SqlitePool(Settings().sqlite_path) as pool, pool.connection() as file:
        migrate(file)
        fill(file)
    # What a command changes for its process
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminated = signal.getsignal(signal.SIGTERM)
    with copy_of_template(site.conninfo) as copy:
        monkeypatch.setenv("DATABASE_URL", copy)
        yield
    signal.signal(signal.SIGTERM, terminated)


@pytest.mark.slow
@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize("command", RUN, ids=shlex.join)
def test_a_command_runs(command: tuple[str, ...], site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    meant = {"/backups": str(site.dump.parent.parent), "DUMP": str(site.dump), "NAME": site.index}
    code = cli.main([meant.get(word, word) for word in command])
    assert code == 0, capsys.readouterr().err


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:no PostgreSQL server serves", "-c", code],
        cwd=folder,
        env=environment(PYTHONWARNINGS=""),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_example_prints_its_state_as_the_nearest(tmp_path: Path) -> None:
    example = COMPLETE[0]
    ran = run_python(example, tmp_path)
    assert ran.stderr == ""
    assert re.fullmatch(r"[0-9a-f-]{36} 1\.0\n", ran.stdout)
    assert len(example.strip().splitlines()) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("code", COMPLETE[1:])
def test_a_complete_example_runs(code: str, tmp_path: Path) -> None:
    ran = run_python(code, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", PYTHON)
def test_calls_fit_their_functions(name: str) -> None:
    known = {public: getattr(kimera_sql, public) for public in dir(kimera_sql)}
    for code in PYTHON[name]:
        for node in ast.walk(ast.parse(code)):
            match node:
                case ast.Import() | ast.ImportFrom():
                    exec(compile(ast.Module([node], []), name, "exec"), known)  # noqa: S102 - an import
                case ast.Call(ast.Attribute(ast.Name(module), function), args, keywords) if module in known:
                    named = {keyword.arg: keyword.value for keyword in keywords if keyword.arg}
                    inspect.signature(getattr(known[module], function)).bind(*args, **named)
