"""docs/architecture.md against the code: imports go down, private names stay at home, every module has its room."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import kimera_sql

PACKAGE: Final = Path(kimera_sql.__file__).parent
PAGE: Final = PACKAGE.parent / "docs" / "architecture.md"

FLOORS: Final = (
    (
        "errors",
        "secrecy",
        "settings",
        "progress",
        "leftovers",
        "supervisor",
        "tables",
        "vectors",
        "checks",
        "model",
        "foreign",
        "replication",
        "strategies",
        "twins",
    ),
    ("sql", "sqlite", "servers", "pools", "replicas", "connect", "schema", "drift", "migrations", "retries"),
    ("search", "entity", "upserts", "batches"),
    ("renewal",),
    ("geoids", "embeddings", "transitions", "portals", "metrics"),
    ("aio",),
    ("transfer", "files", "verify", "ops"),
    ("embedded", "demo", "cli", "pytest_plugin"),
)
"""The rooms from the ground up. Within a floor anything goes, save what APART says."""

APART: Final = ("transfer", "files", "verify", "ops", "geoids", "embeddings", "transitions", "portals", "metrics")
"""Rooms that do not import another one of their own floor."""

PURE: Final = re.compile(
    r"model\.\w+|tables|checks|errors|foreign|strategies|schema|drift"
    r"|sql\.(files|shapes|rows|binary|loaders|plain|arrow|versions)"
    r"|search\.(plan|kinds|measures|looks|diversity|blocks)"
)
"""Modules that decide or describe."""

RUNS: Final = re.compile(
    r"sql(\.(run|load|postgres|sqlite|types))?|connect|servers|pools|replicas|sqlite|migrations|search\.(run|catalogue|indexes|recall|samples|pairs)"
)
"""Modules that run queries."""

MODULES: Final = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


def source(module: str) -> Path:
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yield what a module imports from the package: the module, and the name, "" for the module itself."""
    path = source(module)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module == "__init__":
        package = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield (whole, "") if whole in MODULES else (".".join(base), alias.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "kimera_sql" for name in names), f"{module}: import relatively"


def room(module: str) -> str:
    """Return the room of a module. An asynchronous module is in the room of its twin."""
    return module.removeprefix("aio.").split(".")[0]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__"])
def test_imports_go_down_and_private_names_stay_at_home(module: str) -> None:
    for other, name in imports(module):
        arrow = f"{module} imports {other}{'.' + name if name else ''}"
        assert floor(other) <= floor(module), f"{arrow}, which is a floor up"
        if floor(other) == floor(module) and room(other) != room(module):
            assert not {room(other), room(module)} & {*APART}, f"{arrow}, a room of the same floor"
        if room(other) != room(module):
            private = [part for part in (*other.split("."), name) if part.startswith("_")]
            assert not private, f"{arrow}, a private name"


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_reached_through_another_module(module: str) -> None:
    """As in `connect._conninfo(...)`, where connect was imported from another package."""
    imported = {(other.split(".") if not name else [name])[-1] for other, name in imports(module)}
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            assert not node.attr.startswith("_") or node.attr.startswith("__"), ast.unparse(node)


@pytest.mark.parametrize("module", [module for module in MODULES if PURE.fullmatch(module)])
def test_what_decides_runs_nothing(module: str) -> None:
    running = [other for other, _ in imports(module) if RUNS.fullmatch(other)]
    assert not running, f"{module} imports {', '.join(running)}"


@pytest.mark.parametrize("module", MODULES)
def test_asynchronous_and_synchronous_modules_know_nothing_of_each_other(module: str) -> None:
    """What is pure serves both; a twin uses twins of its own kind."""
    asynchronous = module.split(".")[0] == "aio"
    for other, name in imports(module):
        assert asynchronous or not other.startswith("aio"), f"{module} imports {other}"
        if asynchronous and not other.startswith("aio"):
            twin = f"aio.{other}" in MODULES and source(f"aio.{other}").name != "__init__.py"
            assert not twin or other == "sqlite", f"{module} imports {other}, not aio.{other} ({name})"


def test_every_module_has_a_floor() -> None:
    rooms = {room(module) for module in MODULES} - {"__init__"}
    assert rooms == {one for floor in FLOORS for one in floor}


def test_the_page_names_every_room() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in {room(module) for module in MODULES} - {"__init__"}:
        assert re.search(rf"`(?:\w+/)*{name}\b", page), f"{name} is not in the table of rooms"
    for name in re.findall(r"`((?:model|sql|search|ops|verify|cli)/\w+)`", page):
        assert (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir(), f"the page names {name}"


def test_nothing_asks_for_the_kind_of_a_connection_but_sql() -> None:
    """One place tells PostgreSQL from SQLite: sql.is_postgres, sql.require_postgres, sql.dialect."""
    asking = [
        module
        for module in MODULES
        for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "isinstance"
        and re.search(r"\b(psycopg|sqlite3|aiosqlite)\.(Async)?Connection\b", ast.unparse(node.args[1]))
    ]
    assert set(asking) <= {"sql.run", "aio.sql.run", "ops.backup.tools"}
