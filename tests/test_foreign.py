"""Conninfo as other tools write it is read in its meaning, or refused with what to write instead."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from kimera_sql import SettingsError
from kimera_sql.foreign import SSL_MODES
from kimera_sql.strategies import parse

PASSWORD = "Kq7Zx-planted"


def refused(conninfo: str) -> str:
    """The message of a conninfo that is refused, in which, as in its traceback, there is no password."""
    with pytest.raises(SettingsError) as failed:
        parse(conninfo, source="DATABASE_URL")
    assert PASSWORD not in "".join(traceback.format_exception(failed.value))
    message = str(failed.value)
    assert message.startswith("DATABASE_URL: ")
    return message


UNDERSTOOD = {
    "heroku": ("postgres://u:p@h:5433/db", {"host": "h", "port": "5433", "dbname": "db", "user": "u", "password": "p"}),
    "upper case": ("PostgreSQL://h/db", {"host": "h", "dbname": "db"}),
    "psycopg2": ("postgresql+psycopg2://h/db", {"host": "h", "dbname": "db"}),
    "asyncpg": ("postgresql+asyncpg://h/db", {"host": "h", "dbname": "db"}),
    "jdbc": (
        "jdbc:postgresql://h:5433/db?user=u&password=p%26q",
        {"host": "h", "port": "5433", "dbname": "db", "user": "u", "password": "p&q"},
    ),
    "jdbc ssl": ("jdbc:postgresql://h/db?ssl=true", {"host": "h", "dbname": "db", "sslmode": "require"}),
    "neon": (
        "postgresql://h/db?sslmode=require&channel_binding=require&options=endpoint%3Dep-1",
        {"host": "h", "dbname": "db", "sslmode": "require", "channel_binding": "require", "options": "endpoint=ep-1"},
    ),
    "supabase": (
        "postgres://postgres.abc:p@aws-0.pooler.supabase.com:6543/postgres",
        {
            "host": "aws-0.pooler.supabase.com",
            "port": "6543",
            "dbname": "postgres",
            "user": "postgres.abc",
            "password": "p",
        },
    ),
    "socket as a parameter": ("postgresql:///db?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "db"}),
    "socket instead of a host": ("postgresql://%2Frun%2Fpostgresql/db", {"host": "/run/postgresql", "dbname": "db"}),
    "socket over a host": (
        "postgresql://u@localhost/db?host=/cloudsql/project:region:name",
        {"host": "/cloudsql/project:region:name", "dbname": "db", "user": "u"},
    ),
    "libpq's hosts": ("postgresql://A:1,B:2/db", {"host": "A,B", "port": "1,2", "dbname": "db"}),
    "SQLAlchemy's hosts": (
        "postgresql+psycopg2:///db?host=A:1&host=B:2",
        {"host": "A,B", "port": "1,2", "dbname": "db"},
    ),
    "SQLAlchemy's hosts, a port left out": (
        "postgresql:///db?host=A&host=B:2",
        {"host": "A,B", "port": ",2", "dbname": "db"},
    ),
    "SQLAlchemy's hosts, over another": (
        "postgresql://C:9/db?host=A:1&host=B:2",
        {"host": "A,B", "port": "1,2", "dbname": "db"},
    ),
    "SQLAlchemy's hosts, no ports": ("postgresql://C:9/db?host=A&host=B", {"host": "A,B", "port": "9", "dbname": "db"}),
    "SQLAlchemy's hosts and ports apart": (
        "postgresql:///db?host=A,B&port=1,2",
        {"host": "A,B", "port": "1,2", "dbname": "db"},
    ),
    "SQLAlchemy's host": ("postgresql+asyncpg:///db?host=A:1", {"host": "A", "port": "1", "dbname": "db"}),
    "SQLAlchemy's space": (
        "postgresql+psycopg://h/db?application_name=a+b%2Bc",
        {"host": "h", "dbname": "db", "application_name": "a b+c"},
    ),
    "libpq's plus": (
        "postgresql://h/db?application_name=a+b",
        {"host": "h", "dbname": "db", "application_name": "a+b"},
    ),
    "IPv6": ("postgresql://[::1]:5433/db", {"host": "::1", "port": "5433", "dbname": "db"}),
    "IPv6 as a parameter": ("postgresql:///db?host=::1", {"host": "::1", "dbname": "db"}),
    "IPv6 hosts": (
        "postgresql:///db?host=[::1]:1&host=[fe80::2]",
        {"host": "::1,fe80::2", "port": "1,", "dbname": "db"},
    ),
    "a line's end": ("  postgresql://h/db?sslmode=require\r\n", {"host": "h", "dbname": "db", "sslmode": "require"}),
    "a pair's line end": ("host=h dbname=db\n", {"host": "h", "dbname": "db"}),
    "an & too many": ("postgresql://h/db?&sslmode=require&", {"host": "h", "dbname": "db", "sslmode": "require"}),
    "a service": ("postgresql://?service=ours", {"service": "ours"}),
}


@pytest.mark.parametrize("form", UNDERSTOOD)
def test_a_form_has_its_meaning(form: str) -> None:
    text, meaning = UNDERSTOOD[form]
    assert parse(text) == meaning


ADVICE = {
    "pgbouncer=true": "leave it out; PgBouncer must be",
    "schema=public": "write options=-csearch_path=NAME (in a URL, options=-csearch_path%3DNAME)",
    "ssl=require": "write sslmode=require",
    "ssl=false": "write sslmode=require, or another of disable",
    "prepared_statement_cache_size=0": "leave it out; PgBouncer must be",
    "connection_limit=1": "leave it out, and set KIMERA_POOL_SIZE",
    "pool_timeout=10": "leave it out, and set KIMERA_POOL_SIZE",
    "pool=5": "leave it out, and set KIMERA_POOL_SIZE",
    "encoding=unicode": "write client_encoding=NAME",
    "currentSchema=public": "write options=-csearch_path=NAME",
    "targetServerType=primary": "write target_session_attrs=primary",
    "socketTimeout=30": "write options=-cstatement_timeout=MILLISECONDS",
    "connectionTimeoutMillis=3000": "write connect_timeout=SECONDS",
    "database=db": "write dbname=NAME",
    # other spellings of libpq's own
    "ApplicationName=x": "write application_name",
    "connectTimeout=10": "write connect_timeout",
    "sslMode=require": "write sslmode",
    "ssl-root-cert=x": "write sslrootcert",
    # settings of the server, and what no tool here is known for
    "statement_timeout=5s": "if it is a setting of the server, write options=-cstatement_timeout=VALUE",
    "no_such_thing=1": "leave it out or",
}


@pytest.mark.parametrize("query", ADVICE)
def test_a_parameter_that_libpq_lacks_is_named_with_what_to_write(query: str) -> None:
    name, _, value = query.partition("=")
    message = refused(f"postgresql://u:{PASSWORD}@h/db?sslmode=require&{query}")
    assert message.startswith(f"DATABASE_URL: libpq has no parameter {name}; ")
    assert ADVICE[query] in message
    assert refused(f"host=h {name} = {value} password={PASSWORD}") == message


@pytest.mark.parametrize("advised", ["options=-csearch_path%3Dkimera", "sslmode=require", "connect_timeout=3"])
def test_what_is_advised_is_understood(advised: str) -> None:
    name, _, value = advised.partition("=")
    assert parse(f"postgresql://h/db?{advised}")[name] == value.replace("%3D", "=")


REFUSED = {
    "postgresql://h/db?sslmode=no-verify": "sslmode must be one of disable, allow, prefer, require, verify-ca",
    "host=h sslmode=required": "sslmode must be one of disable",
    "postgresql://h/db?sslmode=require&sslmode=disable": "sslmode is given twice",
    "jdbc:postgresql://h/db?sslmode=verify-full&ssl=true": "sslmode is given twice",
    "postgresql:///db?host=A:1&host=B:2&port=3": "write the ports behind the hosts or as port=, not both",
    "postgresql://h/db?options=-c search_path=x": "write options=VALUE, and in the value %3D for =",
    "postgresql://h/db?sslmode": "write sslmode=VALUE",
    "postgresql://::1/db": "an IPv6 address in [brackets]",
    "postgresql://h:54x/db": "the port is not a number from 1 to 65535",
    "postgresql://h/db?connect_timeout=10s": "connect_timeout must be a whole number, without a unit",
    "postgresql://h/db?connect_timeout=2.5": "connect_timeout must be a whole number",
    "postgresql://h/db?keepalives=yes": "keepalives must be a whole number",
    "host=h tcp_user_timeout=80s": "tcp_user_timeout must be a whole number",
    "sqlite:///kimera.db": "leave it out and set KIMERA_SQLITE_PATH",
    "sqlite+aiosqlite:///kimera.db": "leave it out and set KIMERA_SQLITE_PATH",
    "psql 'postgresql://h/db'": "expected a URL that begins with postgresql://",
    "Host=h;Port=5432;Database=db": "libpq has no parameter Host; write host",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(text: str) -> None:
    assert REFUSED[text] in refused(text)


@pytest.mark.parametrize("mode", SSL_MODES)
def test_every_sslmode_of_libpq_is_taken(mode: str) -> None:
    assert parse(f"postgresql://h/db?sslmode={mode}")["sslmode"] == mode


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:Xx?{PASSWORD}=1@h/db",
        f"postgresql://u:Xx?sslmode=require&{PASSWORD}=1@h/db",
        f"jdbc:postgresql://h/db?user=u&password=Xx&{PASSWORD}=1",
        f"host=h password=Xx {PASSWORD}=1",
        f"host=h sslpassword = Xx {PASSWORD}=1",
    ],
)
def test_what_may_be_a_piece_of_a_password_is_not_named(text: str) -> None:
    assert "or the password is not escaped: in a URL, write its special characters as %XX" in refused(text)


@given(
    st.dictionaries(st.sampled_from(["application_name", "options", "password", "sslcert"]), st.text("a =+&?%/@'\\é:1"))
)
def test_escaped_values_are_what_libpq_reads(values: dict[str, str]) -> None:
    query = "&".join(f"{name}={''.join(f'%{byte:02X}' for byte in value.encode())}" for name, value in values.items())
    text = f"postgresql://h/db?{query}"
    assert parse(text) == conninfo_to_dict(text)
