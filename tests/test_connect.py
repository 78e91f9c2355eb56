"""The strategies find a database or say why not, and the pool outlives what happens to its connections."""

from __future__ import annotations

import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
import psycopg
import pytest
from fix_servers import Server
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import ConnectionFailed, Pool, Settings, SettingsError, embedded, open_pool
from kimera_sql.strategies import parse

UNREACHABLE = {"host": "127.0.0.1", "port": "1"}
UNREACHABLE_URL = "postgresql://127.0.0.1:1/other"
SELF = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KIMERA_DB_", "KIMERA_POOL_", "KIMERA_CONNECT_", "DATABASE_URL", "PG")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def first(newest: Server) -> Iterator[str]:
    conninfo = newest.create()
    yield conninfo
    newest.drop(conninfo)


@pytest.fixture(scope="module")
def second(newest: Server) -> Iterator[str]:
    conninfo = newest.create()
    yield conninfo
    newest.drop(conninfo)


def parameters(conninfo: str) -> dict[str, str]:
    return {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}


def url(conninfo: str, scheme: str = "postgresql") -> str:
    return f"{scheme}:///?{urlencode(parameters(conninfo), quote_via=quote)}"


def value(conn: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = conn.execute(query.encode(), arguments or None).fetchone()
    assert row is not None
    return row[0]


ONE = Settings(pool_size=1, pool_overflow=0)


def reached(conninfo: str | None = None, *, settings: Settings | None = None) -> str:
    with open_pool(conninfo, settings=settings) as pool, pool.connection() as conn:
        assert isinstance(conn, psycopg.Connection)
        return str(value(conn, "SELECT current_database()"))


def name(conninfo: str) -> str:
    return parameters(conninfo)["dbname"]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError(what)


def test_kimera_credentials_come_before_the_url(first: str, second: str) -> None:
    assert reached(settings=Settings(credentials=parameters(first), database_url=url(second))) == name(first)


def test_without_kimera_credentials_the_url_is_used(second: str) -> None:
    assert reached(settings=Settings(database_url=url(second))) == name(second)


def test_the_environment_is_read_where_no_settings_are_given(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url(second))
    assert reached() == name(second)


def test_a_conninfo_is_the_only_one_tried(first: str, second: str) -> None:
    configured = Settings(credentials=parameters(second), database_url=url(second))
    assert reached(first, settings=configured) == name(first)
    with pytest.raises(ConnectionFailed) as failed:
        open_pool(UNREACHABLE_URL, settings=configured)
    assert f"conninfo (host=127.0.0.1 port=1 dbname=other user={SELF}): " in str(failed.value)
    assert "DATABASE_URL (" not in str(failed.value)


@pytest.mark.parametrize("place", [UNREACHABLE, {"host": "/nonexistent"}], ids=["refused port", "no socket"])
def test_an_unreachable_kimera_server_is_passed_over(
    place: dict[str, str], second: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert reached(settings=Settings(credentials=place, database_url=url(second))) == name(second)
    assert f"KIMERA_DB_* (host={place['host']}" in caplog.text


def test_a_kimera_server_that_does_not_answer_is_passed_over(second: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"host": "127.0.0.1", "port": str(silent.getsockname()[1])}
        configured = Settings(credentials=place, database_url=url(second), connect_timeout=2)
        assert reached(settings=configured) == name(second)


@pytest.mark.parametrize("wrong", [{"dbname": "no_such_database"}, {"user": "no_such_role"}])
def test_a_refusal_is_final(wrong: dict[str, str], first: str, second: str) -> None:
    configured = Settings(credentials={**parameters(first), **wrong}, database_url=url(second))
    with pytest.raises(ConnectionFailed, match="the server answered and refused, so nothing else was tried") as failed:
        open_pool(settings=configured)
    (wrong_name,) = wrong.values()
    assert f'"{wrong_name}" does not exist' in str(failed.value)
    assert "DATABASE_URL" not in str(failed.value)


def test_a_refused_conninfo_says_so(first: str) -> None:
    with pytest.raises(ConnectionFailed, match="answered and refused"):
        open_pool(make_conninfo(first, dbname="no_such_database"))


def test_nothing_configured_names_what_to_set() -> None:
    with pytest.raises(ConnectionFailed, match="set KIMERA_DB_HOST and its companions or DATABASE_URL") as failed:
        open_pool(settings=Settings(sqlite_fallback="never"))
    assert str(failed.value).splitlines()[1:] == [
        "  KIMERA_DB_*: not set",
        "  DATABASE_URL: not set",
        "  PG*: not set",
        "  SQLite: not tried (KIMERA_SQLITE_FALLBACK=never)",
    ]


def test_when_all_fail_each_attempt_and_its_cause_are_listed() -> None:
    configured = Settings(credentials={"host": "/nonexistent"}, database_url=UNREACHABLE_URL)
    with pytest.raises(ConnectionFailed) as failed:
        open_pool(settings=configured)
    message = str(failed.value)
    kimera, _, other = message.partition(f"DATABASE_URL (host=127.0.0.1 port=1 dbname=other user={SELF}): ")
    assert "KIMERA_DB_* (host=/nonexistent port=5432 dbname=kimera_swm user=kimera): " in kimera
    assert "No such file or directory" in kimera
    assert "Connection refused" in other


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg"]
)
def test_sqlalchemys_urls_are_understood(scheme: str, first: str) -> None:
    assert reached(url(first, scheme)) == name(first)


def test_keyword_value_pairs_are_understood() -> None:
    assert parse("host=db password='a://b c'") == {"host": "db", "password": "a://b c"}


def test_escaped_special_characters_reach_the_password() -> None:
    assert parse(f"postgresql://kimera:{quote('p@s/s?w%r', safe='')}@db/x")["password"] == "p@s/s?w%r"


@pytest.mark.parametrize("text", ["postgresq://localhost/x", "mysql://localhost/x", "postgresql-psycopg2://h/x"])
def test_a_misspelt_scheme_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: expected a URL that begins with postgresql://"):
        open_pool(settings=Settings(database_url=text))


@pytest.mark.parametrize("text", ["", "  ", "postgresql://"])
def test_an_empty_conninfo_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^conninfo: empty"):
        open_pool(text)


def test_what_is_neither_a_url_nor_pairs_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: neither a postgresql:// URL nor keyword=value pairs"):
        open_pool(settings=Settings(database_url="localhost"))


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "5432,x"])
def test_a_port_that_cannot_be_is_refused_before_the_url_is_tried(port: str, second: str) -> None:
    with pytest.raises(SettingsError, match=rf"^KIMERA_DB_PORT must be a number from 1 to 65535, got '{port}'"):
        open_pool(settings=Settings(credentials={"host": "localhost", "port": port}, database_url=url(second)))


@pytest.fixture(scope="module")
def relay(with_password: str) -> Iterator[int]:
    """A TCP port of the server of with_password, which has no TLS and trusts the role postgres."""
    path = f"{parameters(with_password)['host']}/.s.PGSQL.5432"
    command = [sys.executable, str(Path(__file__).with_name("relay.py")), path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def test_every_host_of_sqlalchemys_form_is_tried(relay: int) -> None:
    for hosts in (f"host=127.0.0.1:1&host=127.0.0.1:{relay}", f"host=127.0.0.1:{relay}&host=127.0.0.1:1"):
        text = f"postgresql+psycopg2://postgres@/kimera_swm?{hosts}"
        with open_pool(text, settings=ONE) as pool, pool.connection() as conn:
            assert value(conn, "SELECT current_user") == "postgres"
            assert conn.info.port == relay


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_server_without_the_tls_that_is_demanded_is_not_passed_over(mode: str, second: str, relay: int) -> None:
    place = {"host": "127.0.0.1", "port": str(relay), "user": "postgres", "sslmode": mode}
    with pytest.raises(ConnectionFailed, match="answered and refused, so nothing else was tried") as failed:
        open_pool(settings=Settings(credentials=place, database_url=url(second)))
    assert "server does not support SSL, but SSL was required" in str(failed.value)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            "sslmode=no-verify",
            "KIMERA_DB_*: sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        ("keepalives_idle=30s", "KIMERA_DB_*: keepalives_idle must be a whole number, without a unit"),
        (
            "channel_binding=maybe",
            'KIMERA_DB_*: invalid channel_binding value: "maybe"; see https://www.postgresql.org',
        ),
        ("port=1,2,3", "KIMERA_DB_*: could not match 3 port numbers to 2 hosts"),
        ("service=no_such_service", 'KIMERA_DB_*: definition of service "no_such_service" not found'),
    ],
)
def test_what_libpq_refuses_is_no_reason_to_try_another_database(parameter: str, message: str, second: str) -> None:
    key, _, text = parameter.partition("=")
    place = {"host": "127.0.0.1,127.0.0.1", "port": "1", key: text}
    with pytest.raises(SettingsError) as failed:
        open_pool(settings=Settings(credentials=place, database_url=url(second)))
    assert str(failed.value).startswith(message)


def test_what_is_advised_for_a_schema_is_what_the_server_does(first: str) -> None:
    text = f"{url(first)}&options=-csearch_path%3Dkimera%20-cstatement_timeout%3D5s"
    with open_pool(text, settings=ONE) as pool, pool.connection() as conn:
        assert value(conn, "SHOW search_path") == "kimera"
        assert value(conn, "SHOW statement_timeout") == "5s"


TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


@pytest.mark.parametrize(
    ("options", "settings", "expected", "silence_timeout"),
    [
        ("", {}, ["30s", "10s", "1min"], 31),
        (
            "",
            {"statement_timeout": 0, "lock_timeout": 0, "idle_in_transaction_timeout": 2.5},
            ["0", "0", "2500ms"],
            None,
        ),
        ("-cstatement_timeout=5s -clock_timeout=1min -cdeadlock_timeout=2s", {}, ["5s", "1min", "1min"], 6),
        ("-cstatement_timeout=250ms -cdeadlock_timeout=2s", {"statement_timeout": 0}, ["250ms", "10s", "1min"], 1.25),
        ("--statement-timeout=5min -c lock_timeout=20s", {}, ["5min", "20s", "1min"], 301),
    ],
)
def test_a_session_has_the_timeouts_of_the_settings_but_for_those_of_its_conninfo(
    options: str, settings: dict[str, float], expected: list[str], silence_timeout: float | None, first: str
) -> None:
    given = Settings(pool_size=1, **settings)  # type: ignore[arg-type]
    with open_pool(make_conninfo(first, options=options), settings=given) as pool, pool.connection() as conn:
        assert [value(conn, f"SHOW {name}") for name in TIMEOUTS] == expected
        assert conn.silence_timeout == silence_timeout


def test_a_variable_as_an_env_file_leaves_it_is_understood(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f'"{url(second)}"\r\n')
    assert reached() == name(second)


def test_a_service_of_kubernetes_does_not_stand_in_the_way_of_the_url(
    second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIMERA_DB_PORT", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", url(second))
    assert reached() == name(second)


PIECES = ("Kq7Zx", "Wj9Vy", "Gm4Tz")
SPECIAL = st.text("@/?%:#[]&=,;+ '\"\\1", max_size=3)


def shown(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """Everything that an error and the log show to whoever reads them."""
    texts = [caplog.text, *(repr((record.msg, record.args)) for record in caplog.records)]
    texts += traceback.format_exception(error)
    raised: BaseException | None = error
    while raised is not None:
        texts += [str(raised), repr(raised), repr(raised.args)]
        raised = raised.__cause__ or (None if raised.__suppress_context__ else raised.__context__)
    return "\n".join(texts)


def assert_hidden(pieces: tuple[str, ...], error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    text = shown(error, caplog)
    assert [piece for piece in pieces if piece in text] == []


@given(special=st.tuples(SPECIAL, SPECIAL, SPECIAL))
@example(special=("", "@", ""))
@example(special=("", "/", ""))
@example(special=("1", "/", "?"))
@example(special=("", "?", ""))
@example(special=("", "?", "="))
@example(special=("?sslmode=", "&", "="))
@example(special=("", "%", "%"))
@example(special=("@", "/", "@"))
@hypothesis.settings(max_examples=150)
def test_no_part_of_an_unescaped_password_in_a_url_is_shown(
    special: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    password = "".join(mark + piece for mark, piece in zip(special, PIECES, strict=True))
    text = f"postgresql://kimera:{password}@127.0.0.1:1/kimera_swm"
    with caplog.at_level(logging.DEBUG), pytest.raises((SettingsError, ConnectionFailed)) as failed:
        open_pool(settings=Settings(database_url=text))
    assert_hidden(PIECES, failed.value, caplog)


@given(special=st.tuples(SPECIAL, SPECIAL, SPECIAL))
@example(special=("'", " ", ""))
@example(special=("", " ", "="))
@hypothesis.settings(max_examples=50)
def test_no_part_of_an_unescaped_password_in_pairs_is_shown(
    special: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    password = "".join(mark + piece for mark, piece in zip(special, PIECES, strict=True))
    with caplog.at_level(logging.DEBUG), pytest.raises((SettingsError, ConnectionFailed)) as failed:
        open_pool(f"host=127.0.0.1 port=1 password={password}")
    assert_hidden(PIECES, failed.value, caplog)


@pytest.fixture(scope="module")
def with_password() -> Iterator[str]:
    """A server whose role kimera has the password "".join(PIECES); the conninfo is without it."""
    with embedded.server() as conninfo:
        superuser = make_conninfo(conninfo, user="postgres")
        with psycopg.connect(superuser, autocommit=True) as conn:
            conn.execute(f"ALTER ROLE kimera PASSWORD '{''.join(PIECES)}'".encode())
            hba = Path(value(conn, "SHOW hba_file"))
            hba.write_text(f"local all kimera scram-sha-256\n{hba.read_text()}")
            conn.execute("SELECT pg_reload_conf()")
        wait_until(lambda: not lets_in(conninfo), "the server still trusts kimera")
        yield conninfo


def lets_in(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo, password="Xx").close()
    except psycopg.OperationalError:
        return False
    return True


def test_the_right_password_is_taken(with_password: str) -> None:
    assert reached(make_conninfo(with_password, password="".join(PIECES))) == "kimera_swm"


@pytest.mark.parametrize("password", ["Wrong-Hn5", None], ids=["wrong", "none"])
def test_a_wrong_password_is_final_and_not_shown(
    password: str | None, with_password: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = {**parameters(with_password), **({} if password is None else {"password": password})}
    credentials = {key: text for key, text in credentials.items() if text}
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ConnectionFailed, match="answered and refused, so nothing else was tried") as failed,
    ):
        open_pool(settings=Settings(credentials=credentials, database_url=url(second)))
    assert "password" in str(failed.value)
    assert_hidden(("Wrong-Hn5",), failed.value, caplog)


VARIABLES = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes libpq's variables name the database of a conninfo."""

    def set_all(conninfo: str) -> None:
        given = parameters(conninfo)
        for key in VARIABLES.keys() & given.keys():
            monkeypatch.setenv(VARIABLES[key], given[key])

    return set_all


@pytest.fixture
def set_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A function that writes a service file in which "ours" leads to a conninfo."""

    def write(conninfo: str, **further: str) -> None:
        lines = [f"{key}={text}\n" for key, text in (parameters(conninfo) | further).items()]
        (tmp_path / "services").write_text(f"[ours]\n{''.join(lines)}")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    return write


def test_libpqs_variables_alone_name_the_database(first: str, set_variables: Callable[[str], None]) -> None:
    set_variables(first)
    assert reached() == name(first)


def test_a_service_alone_names_the_database(
    first: str, set_service: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_service(first)
    monkeypatch.setenv("PGSERVICE", "ours")
    assert reached() == name(first)
    monkeypatch.setenv("PGSERVICE", "theirs")
    with pytest.raises(SettingsError, match=r'^PG\*: definition of service "theirs" not found'):
        open_pool()


def test_libpqs_variables_that_lead_nowhere_do_not_lead_to_sqlite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATABASE", "other")
    with pytest.raises(ConnectionFailed) as failed:
        open_pool()
    assert f"  PG* (host=127.0.0.1 port=1 dbname=other user={SELF}): " in str(failed.value)
    assert list(tmp_path.iterdir()) == []


def test_libpqs_variables_are_no_way_of_their_own_beside_a_url(
    first: str, set_variables: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(first)
    monkeypatch.setenv("DATABASE_URL", UNREACHABLE_URL)
    with pytest.raises(ConnectionFailed) as failed:
        open_pool()
    assert "PG*" not in str(failed.value)


def test_libpqs_variables_fill_in_what_the_credentials_leave_out(
    first: str, second: str, set_variables: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(first)
    monkeypatch.setenv("KIMERA_DB_PASSWORD", "unused")
    assert reached() == name(first)
    monkeypatch.setenv("KIMERA_DB_NAME", name(second))
    assert reached() == name(second)


def test_libpqs_variables_fill_in_what_a_url_leaves_out(
    first: str, set_variables: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(first)
    monkeypatch.delenv("PGDATABASE")
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///{name(first)}")
    assert reached() == name(first)


def test_a_service_stands_for_kimeras_defaults_too(
    first: str, set_service: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_service(first)
    monkeypatch.setenv("PGSERVICE", "ours")
    monkeypatch.setenv("PGHOST", "/nonexistent")  # which a service overrides
    monkeypatch.setenv("KIMERA_DB_PASSWORD", "unused")
    assert reached() == name(first)


def test_without_libpqs_variables_kimeras_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_DB_PORT", "1")
    with pytest.raises(ConnectionFailed, match=r"KIMERA_DB_\* \(host=localhost port=1 dbname=kimera_swm user=kimera\)"):
        open_pool()


@pytest.mark.parametrize("file", ["PGPASSFILE", "HOME"])
def test_libpqs_password_file_is_read(
    file: str, with_password: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passfile = tmp_path / ".pgpass"
    passfile.touch(0o600)
    passfile.write_text(f"*:*:*:kimera:{''.join(PIECES)}\n")
    monkeypatch.setenv(file, str(passfile if file == "PGPASSFILE" else tmp_path))
    assert reached(settings=Settings(credentials=parameters(with_password))) == "kimera_swm"


OWN = {
    "connect_timeout": "3",
    "keepalives": "0",
    "keepalives_idle": "9",
    "keepalives_interval": "8",
    "keepalives_count": "7",
    "tcp_user_timeout": "6000",
}


def told(conninfo: str | None, settings: Settings | None = None) -> dict[str, str | None]:
    """What the connections of a pool are told of OWN's parameters, and the application_name that the server knows."""
    with open_pool(conninfo, settings=settings) as pool, pool.connection() as conn:
        assert isinstance(conn, psycopg.Connection)
        given = conn.info.get_parameters()
        return {key: given.get(key) for key in OWN} | {"application_name": value(conn, "SHOW application_name")}


@pytest.mark.parametrize("named", ["by its variable", "in a URL"])
def test_our_defaults_do_not_override_a_service(
    named: str, first: str, set_service: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_service(first, application_name="theirs", **OWN)
    if named == "by its variable":
        monkeypatch.setenv("PGSERVICE", "ours")
    else:
        monkeypatch.setenv("DATABASE_URL", "postgresql://?service=ours")
    assert told(None) == OWN | {"application_name": "theirs"}


def test_our_defaults_fill_in_what_a_service_leaves_out(first: str, set_service: Callable[..., None]) -> None:
    set_service(first, keepalives_idle="9")
    assert told("service=ours") == {key: DEFAULTS[key] for key in OWN} | {
        "keepalives_idle": "9",
        "application_name": "Kimera SWM",
    }


def test_our_defaults_do_not_override_libpqs_variables(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGAPPNAME", "theirs")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert told(first) == {key: DEFAULTS[key] for key in OWN} | {"connect_timeout": "4", "application_name": "theirs"}
    assert told(first, Settings(connect_timeout=5))["connect_timeout"] == "5"
    assert told(make_conninfo(first, connect_timeout=6), Settings(connect_timeout=5))["connect_timeout"] == "6"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PGSSLMODE", "no-verify", "sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("PGCONNECT_TIMEOUT", "10s", "connect_timeout must be a whole number"),
        ("PGPORT", "tcp", "the port is not a number"),
    ],
)
def test_a_variable_of_libpqs_that_cannot_be_used_is_refused(
    variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=rf"^libpq's PG\* variables or service file: {message}"):
        open_pool("host=127.0.0.1 dbname=other")


DEFAULTS = {
    "fallback_application_name": "Kimera SWM",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
    "connect_timeout": "10",
}


def test_the_defaults_reach_every_connection(first: str) -> None:
    with open_pool(first) as pool, pool.connection() as conn:
        assert {key: conn.info.get_parameters().get(key) for key in DEFAULTS} == DEFAULTS
        assert value(conn, "SHOW application_name") == "Kimera SWM"


def test_the_users_own_settings_win(first: str) -> None:
    own = dict.fromkeys(DEFAULTS, "7") | {"keepalives": "0", "application_name": "mine"}
    with open_pool(make_conninfo(first, **own)) as pool, pool.connection() as conn:
        assert {key: conn.info.get_parameters().get(key) for key in own} == own
        assert value(conn, "SHOW application_name") == "mine"


def test_the_connect_timeout_of_the_settings_is_used(first: str) -> None:
    with open_pool(first, settings=Settings(connect_timeout=4)) as pool, pool.connection() as conn:
        assert conn.info.get_parameters()["connect_timeout"] == "4"


def send_and_receive(conn: psycopg.Connection[Any]) -> None:
    sent = unit(1)
    assert value(conn, "SELECT %s", sent).tolist() == sent.tolist()


def test_every_connection_has_the_vector_adapters(database: str) -> None:
    with open_pool(database, settings=Settings(pool_size=2, pool_overflow=2)) as pool, ExitStack() as stack:
        for conn in [stack.enter_context(pool.connection()) for _ in range(4)]:
            send_and_receive(conn)


def test_adapters_come_with_an_extension_created_later(empty_database: str) -> None:
    with open_pool(empty_database, settings=Settings(pool_size=1, pool_overflow=0)) as pool:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        with psycopg.connect(empty_database) as other:
            other.execute("CREATE EXTENSION vector")
        with pool.connection() as conn:
            send_and_receive(conn)


@pytest.fixture
def notes(database: str) -> str:
    with psycopg.connect(database) as conn:
        conn.execute("CREATE TABLE notes (note TEXT)")
    return database


def count_notes(conninfo: str) -> int:
    with psycopg.connect(conninfo) as conn:
        return int(value(conn, "SELECT count(*) FROM notes"))


def test_a_block_that_ends_is_committed(notes: str) -> None:
    with open_pool(notes) as pool:
        with pool.connection() as conn:
            conn.execute("INSERT INTO notes VALUES ('kept')")
        assert count_notes(notes) == 1


def insert_and_fail(conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO notes VALUES ('lost')")
    raise ZeroDivisionError


def test_a_block_that_raises_is_rolled_back(notes: str) -> None:
    with open_pool(notes) as pool:
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            insert_and_fail(conn)
        assert count_notes(notes) == 0


def test_fifteen_connections_are_served_and_the_next_one_is_told_why_not(first: str) -> None:
    with open_pool(first) as pool, ExitStack() as stack:
        held = [stack.enter_context(pool.connection()) for _ in range(15)]
        assert len({conn.info.backend_pid for conn in held}) == 15
        with pytest.raises(PoolTimeout, match=r"all 15 connections are in use.*KIMERA_POOL_OVERFLOW"):
            pool.getconn(timeout=0.2)


def test_the_settings_timeout_bounds_the_wait(first: str) -> None:
    configured = Settings(pool_size=1, pool_overflow=0, pool_timeout=0.25)
    with (
        open_pool(first, settings=configured) as pool,
        pool.connection(),
        pytest.raises(PoolTimeout, match=r"after 0\.\d\d sec; all 1"),
    ):
        pool.getconn()


STALE = Settings(pool_size=6, pool_overflow=0, pool_timeout=5)


def backends(pool: Pool) -> set[int]:
    with ExitStack() as stack:
        return {stack.enter_context(pool.connection()).info.backend_pid for _ in range(pool.max_size)}


def kill_backends(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        found = conn.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'Kimera SWM'"
        ).fetchall()
    assert found == [(True,)] * 6


def test_stale_connections_are_all_replaced_at_the_first_checkout(database: str) -> None:
    with open_pool(database, settings=STALE) as pool:
        stale = backends(pool)
        kill_backends(database)
        with pool.connection() as conn:
            assert value(conn, "SELECT 1") == 1
        assert len(stale) == 6
        assert backends(pool).isdisjoint(stale)


def test_many_that_find_stale_connections_at_once_drain_the_pool_once(database: str) -> None:
    with open_pool(database, settings=STALE) as pool, ThreadPoolExecutor(6) as threads:
        backends(pool)
        opened = pool.get_stats()["connections_num"]
        kill_backends(database)
        together = threading.Barrier(6, timeout=30)

        def use() -> Any:
            with pool.connection() as conn:
                together.wait()
                return value(conn, "SELECT 1")

        assert [future.result() for future in [threads.submit(use) for _ in range(6)]] == [1] * 6
        assert pool.get_stats()["connections_num"] == opened + 6


def test_a_stale_connection_found_later_does_not_drain_the_pool_again(database: str) -> None:
    with open_pool(database, settings=STALE) as pool:
        pool.wait()
        with pool.connection() as early:
            kill_backends(database)
            with pool.connection() as conn:
                fresh = conn.info.backend_pid
            with pytest.raises(psycopg.OperationalError):
                pool._vet(early)
        assert fresh in backends(pool)


def backend(pool: Pool, *, aged: float = 0) -> int:
    with pool.connection() as conn:
        conn.opened_at -= aged
        return conn.info.backend_pid


def test_a_connection_within_its_age_is_kept(first: str) -> None:
    with open_pool(first, settings=Settings(pool_size=1, pool_overflow=0, pool_recycle=100)) as pool:
        before = backend(pool, aged=50)
        assert backend(pool) == before


def test_a_connection_past_its_age_is_replaced_at_checkout(first: str) -> None:
    with open_pool(first, settings=Settings(pool_size=1, pool_overflow=0, pool_recycle=100)) as pool:
        before = backend(pool, aged=101)
        assert backend(pool) != before


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_with_the_server_down_a_timeout_carries_the_cause(open_folder: Path) -> None:
    configured = Settings(pool_size=1, pool_overflow=0, pool_timeout=1)
    with embedded.server(open_folder / "data") as conninfo, open_pool(conninfo, settings=configured) as pool:
        served_by = backend(pool)
        postmaster = int((open_folder / "data/postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: gone(postmaster) and gone(served_by), "the killed server is still there")
        with pytest.raises(PoolTimeout, match="the last attempt to connect failed: ") as failed:
            pool.getconn()
    assert isinstance(failed.value.__cause__, psycopg.OperationalError)
    assert str(failed.value.__cause__) in str(failed.value)


def accept_connections(newest: Server, conninfo: str, accept: bool) -> None:
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name(conninfo)} ALLOW_CONNECTIONS {accept}".encode())


def test_a_failure_that_is_over_is_not_given_as_the_cause(newest: Server) -> None:
    database = newest.create()
    with ExitStack() as stack:
        stack.callback(newest.drop, database)
        pool = stack.enter_context(open_pool(database, settings=Settings(pool_size=1, pool_overflow=1)))
        pool.wait()
        stack.enter_context(pool.connection())
        accept_connections(newest, database, False)
        with pytest.raises(PoolTimeout, match="not currently accepting connections"):
            pool.getconn(timeout=0.5)
        accept_connections(newest, database, True)
        stack.enter_context(pool.connection())
        with pytest.raises(PoolTimeout, match="all 2 connections are in use"):
            pool.getconn(timeout=0.2)


def test_a_pool_outlives_a_restart_of_its_server(open_folder: Path) -> None:
    with ExitStack() as stack:
        with embedded.server(open_folder / "data") as conninfo:
            pool = stack.enter_context(open_pool(conninfo, settings=STALE))
            before = backends(pool)
        stack.enter_context(embedded.server(open_folder / "data"))
        assert backends(pool).isdisjoint(before)


def test_a_pool_speaks_utf8_whatever_the_environment_says(newest: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with open_pool(newest.conninfo) as pool, pool.connection() as conn:
        assert conn.info.encoding == "utf-8"
    with open_pool(make_conninfo(newest.conninfo, client_encoding="LATIN1")) as pool, pool.connection() as conn:
        assert conn.info.encoding == "iso8859-1"
