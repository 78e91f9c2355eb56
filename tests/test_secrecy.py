"""A password is in no repr, copy or pickle of the settings, and nowhere that an error leads to."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import pytest
from fix_servers import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from kimera_sql import BackupError, ConnectionFailed, KimeraError, Settings, SettingsError, aio, open_pool
from kimera_sql.ops.backup import tools

SECRET = "Zk9-hidden-Qw4"
CREDENTIALS = {"host": "127.0.0.1", "port": "1", "password": SECRET}
URL = f"postgresql://someone:{SECRET}@127.0.0.1:1/somewhere"


def frames(start: TracebackType | None) -> Iterator[tuple[str, Any]]:
    """Yield the variables of what raised an error, but for those of the tests."""
    for frame, _ in traceback.walk_tb(start):
        if Path(__file__).parent not in Path(frame.f_code.co_filename).parents:
            for name, value in frame.f_locals.items():
                yield f"{frame.f_code.co_qualname}: {name}", value


def places(error: BaseException | None) -> list[str]:
    """Where *error*, or what led to it, has the password."""
    if error is None:
        return []
    found = [place for place, value in frames(error.__traceback__) if SECRET in repr(value)]
    said = [str(error), repr(error), *map(repr, vars(error).values())]
    return (
        found
        + [type(error).__name__ for text in said if SECRET in text]
        + places(error.__cause__)
        + places(error.__context__)
    )


def settings(**given: Any) -> Callable[[], object]:
    return lambda: open_pool(settings=Settings(**given))


async def opened(**given: Any) -> None:
    async with await aio.open_pool(**given):
        pass


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (settings(credentials=CREDENTIALS), ConnectionFailed),
        (settings(database_url=URL), ConnectionFailed),
        (lambda: open_pool(URL), ConnectionFailed),
        (lambda: asyncio.run(opened(conninfo=URL)), ConnectionFailed),
        (lambda: asyncio.run(opened(settings=Settings(database_url=URL))), ConnectionFailed),
        (lambda: open_pool(f"host=127.0.0.1 password=x {SECRET}=y"), SettingsError),
        (lambda: open_pool(f"password={SECRET}' '"), SettingsError),
        (lambda: open_pool(f"{URL}?sslmode=none"), SettingsError),
        (lambda: open_pool(f"postgresql://u:{SECRET}%FF@127.0.0.1:1/x"), SettingsError),
        (lambda: open_pool(f"host=127.0.0.1 password={SECRET}\udcff"), SettingsError),
        (lambda: open_pool(f"host=127.0.0.1 password={SECRET}\0"), SettingsError),
        (lambda: Settings(credentials={**CREDENTIALS, "port": "a"}), SettingsError),
        (lambda: Settings(credentials={"password": f"{SECRET}\udcff"}), SettingsError),
        (lambda: Settings(credentials=CREDENTIALS, database_url=URL, pool_size=0), SettingsError),
        (lambda: Settings.from_env({"KIMERA_DB_PASSWORD": SECRET, "KIMERA_POOL_SIZE": "few"}), SettingsError),
        (lambda: Settings.from_env({"DATABASE_URL": URL, "KIMERA_POOL_SIZE": "0"}), SettingsError),
        (lambda: tools.run(Path("/bin/false"), [], {**CREDENTIALS, "sslpassword": SECRET}), BackupError),
    ],
)
def test_what_an_error_leads_to_has_no_password(call: Callable[[], object], expected: type[KimeraError]) -> None:
    with pytest.raises(expected) as raised:
        call()
    assert places(raised.value) == []


def test_a_refused_login_leads_to_no_password(newest: Server) -> None:
    conninfo = make_conninfo(newest.conninfo, dbname="there_is_none", password=SECRET)
    for call in (lambda: open_pool(conninfo), lambda: asyncio.run(opened(conninfo=conninfo))):
        with pytest.raises(ConnectionFailed, match="answered and refused") as raised:
            call()
        assert places(raised.value) == []


def test_the_cause_of_a_timeout_has_no_password(newest: Server) -> None:
    database = newest.create()
    name = conninfo_to_dict(database)["dbname"]
    configured = Settings(pool_size=1, pool_overflow=1)
    with open_pool(make_conninfo(database, password=SECRET), settings=configured) as pool:
        pool.wait()
        with pool.connection(), psycopg.connect(newest.conninfo, autocommit=True) as conn:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            with pytest.raises(PoolTimeout) as raised:
                pool.getconn(timeout=0.5)
    assert raised.value.__cause__ is not None
    assert places(raised.value) == []
    newest.drop(database)


def test_an_error_that_is_handled_meanwhile_keeps_its_variables() -> None:
    def fail() -> None:
        kept = "kept"
        raise ZeroDivisionError(kept)

    try:
        fail()
    except ZeroDivisionError as handled:
        with pytest.raises(SettingsError):
            open_pool("host")
        start = handled.__traceback__
    assert "kept" in [value for frame, _ in traceback.walk_tb(start) for value in frame.f_locals.values()]


def test_the_settings_show_no_password_and_have_it() -> None:
    made = Settings(credentials={**CREDENTIALS, "sslpassword": SECRET}, database_url=URL)
    for shown in (
        repr(made),
        f"{made}",
        f"{made.credentials} {made.database_url}",
        repr(dataclasses.asdict(made)),
        repr(dataclasses.astuple(made)),
        repr(copy.copy(made)),
        repr(copy.deepcopy(made)),
        repr(dataclasses.replace(made, pool_size=1)),
    ):
        assert SECRET not in shown
        assert "***" in shown
    assert copy.deepcopy(made) == dataclasses.replace(made, pool_size=5) == made
    assert made.database_url == URL


@pytest.mark.parametrize("given", [{"credentials": CREDENTIALS}, {"database_url": URL}])
def test_settings_with_a_password_are_not_pickled(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Settings\.from_env\(\)"):
        pickle.dumps(Settings(**given))


def test_settings_without_a_password_are_pickled() -> None:
    made = Settings(credentials={"host": "localhost"}, pool_size=2)
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - our own


def test_bytes_that_are_not_utf_8_are_refused_or_left_to_libpq(newest: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KIMERA_DB_PASSWORD", "DATABASE_URL"):
        with pytest.raises(SettingsError, match=f"{variable}.* is not text in UTF-8"):
            open_pool(settings=Settings.from_env({variable: os.fsdecode(b"a\xff")}))
    monkeypatch.setenv("PGPASSWORD", os.fsdecode(b"a\xff"))
    with open_pool(newest.conninfo) as pool, pool.connection() as conn:
        assert tools.parameters(conn)["password"] == os.fsdecode(b"a\xff")
        tools.run(tools.find("pg_dump", conn), ["--schema-only"], tools.parameters(conn))
