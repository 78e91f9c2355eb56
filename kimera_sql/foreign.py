"""Conninfo as other tools write it: what libpq reads otherwise, and what to write for what it does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

from psycopg.pq import Conninfo

from .errors import SettingsError

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_OPTIONS: Final = {option.keyword.decode(): option for option in Conninfo.get_defaults()}

SECRETS: Final = [name for name, option in _OPTIONS.items() if option.dispchar == b"*"]
"""libpq's parameters that are passwords or the like."""

_POOL: Final = (
    "leave it out, and set KIMERA_POOL_SIZE, KIMERA_POOL_OVERFLOW, KIMERA_POOL_TIMEOUT or KIMERA_POOL_RECYCLE"
)
_PREPARED: Final = "leave it out: behind PgBouncer a pool prepares no statements; see KIMERA_PREPARED_STATEMENTS"
_TIMEOUT: Final = "write connect_timeout=SECONDS"


def _option(name: str, value: str) -> str:
    return f"write options=-c{name}={value} (in a URL, options=-c{name}%3D{value})"


_ADVICE: Final = {
    # Prisma and Supabase
    "pgbouncer": _PREPARED,
    "connection_limit": _POOL,
    "pool_timeout": _POOL,
    "schema": _option("search_path", "NAME"),
    "sslaccept": "write sslmode=verify-full for strict, sslmode=require for accept_invalid_certs",
    "socket_timeout": _option("statement_timeout", "MILLISECONDS"),
    # SQLAlchemy and asyncpg
    "ssl": f"write sslmode=require, or another of {', '.join(SSL_MODES)}",
    "prepared_statement_cache_size": _PREPARED,
    "prepared_statement_name_func": _PREPARED,
    "statement_cache_size": _PREPARED,
    "prepare_threshold": _PREPARED,
    "command_timeout": _option("statement_timeout", "MILLISECONDS"),
    "timeout": _TIMEOUT,
    "database": "write dbname=NAME",
    "username": "write user=NAME",
    # Rails and Django
    "pool": _POOL,
    "prepared_statements": _PREPARED,
    "encoding": "write client_encoding=NAME",
    "conn_max_age": _POOL,
    # JDBC
    "currentSchema": _option("search_path", "NAME"),
    "prepareThreshold": _PREPARED,
    "targetServerType": "write target_session_attrs=primary, standby, prefer-standby or any",
    "loginTimeout": _TIMEOUT,
    "socketTimeout": _option("statement_timeout", "MILLISECONDS"),
    # node-postgres, pgx, sqlx
    "connectionTimeoutMillis": _TIMEOUT,
    "query_timeout": _option("statement_timeout", "MILLISECONDS"),
    "pool_max_conns": _POOL,
    "pool_min_conns": _POOL,
    "default_query_exec_mode": _PREPARED,
    "statement-cache-capacity": _PREPARED,
}
"""What to write for the parameters of other tools."""

_LIKE: Final = {name.replace("_", ""): name for name in _OPTIONS}
"""libpq's parameters by what is left of other spellings, as sslMode, ssl-mode and ApplicationName."""

_PLACE: Final = re.compile(r"(\[[^]]+\]|[^:/[\]]*)(?::(\d+))?")
"""A host, in brackets if it is an IPv6 address, and perhaps a port."""


def url(text: str, source: str) -> str:
    """Return the URL *text*, of SQLAlchemy, JDBC or libpq, as one that libpq reads in the same meaning.

    Raises SettingsError, which names *source* and the parameter that cannot be used.
    """
    scheme, _, rest = text.partition("://")
    kind, driver, _ = scheme.lower().removeprefix("jdbc:").partition("+")
    if kind == "sqlite":
        raise SettingsError(f"{source}: an SQLite file is not given by a URL; leave it out and set KIMERA_SQLITE_PATH")
    if kind not in ("postgresql", "postgres"):
        raise SettingsError(f"{source}: expected a URL that begins with postgresql://")
    place, mark, query = rest.partition("?")
    if driver:
        query = query.replace("+", "%20")  # SQLAlchemy's way to write a space
    return f"postgresql://{place}{mark}{'&'.join(_query(query, source))}"


def unknown(name: str, before: str, source: str) -> SettingsError:
    """Return the error for *name*, which is no parameter of libpq, with *before* in front of it.

    A password that was not escaped or quoted ends early, and its rest looks like a parameter. A name that could be
    such a rest is left out.
    """
    if advice := _advice(name):
        return SettingsError(f"{source}: libpq has no parameter {name}; {advice}")
    if any(secret in before for secret in ("@", *SECRETS)):
        return SettingsError(
            f"{source}: libpq lacks one of the parameters, or the password is not escaped: in a URL, write its special "
            "characters as %XX (? is %3F, & is %26); elsewhere, put it in single quotes"
        )
    return SettingsError(
        f"{source}: libpq has no parameter {name}; leave it out or, if it is a setting of the server, "
        f"{_option(name, 'VALUE')}"
    )


def _advice(name: str) -> str | None:
    alike = _LIKE.get(re.sub("[_-]", "", name).lower())
    return _ADVICE.get(name) or (f"write {alike}" if alike else None)


def _query(query: str, source: str) -> Iterable[str]:
    """Return the parameters of a URL, with the ports that SQLAlchemy writes behind each host in one of their own."""
    parts: dict[str, str] = {}
    places: list[str] = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        name = "sslmode" if part == "ssl=true" else unquote(name)  # libpq takes this one form of JDBC's
        if name not in _OPTIONS:
            # An @ anywhere says that the ? before all this was a part of the password.
            raise unknown(name, query if "@" in query else query.partition(part)[0], source)
        if part.count("=") != 1:
            raise SettingsError(f"{source}: write {name}=VALUE, and in the value %3D for =")
        if name == "host":
            places += unquote(value).split(",")
        elif name in parts:
            raise SettingsError(f"{source}: {name} is given twice; write it once")
        parts[name] = part
    if places:
        hosts, ports = zip(*map(_host_and_port, places), strict=True)
        parts["host"] = f"host={quote(','.join(hosts))}"
        if any(ports):
            if "port" in parts:
                raise SettingsError(f"{source}: write the ports behind the hosts or as port=, not both")
            parts["port"] = f"port={','.join(ports)}"
    return parts.values()


def _host_and_port(place: str) -> tuple[str, str]:
    match = _PLACE.fullmatch(place)
    return (match[1].strip("[]"), match[2] or "") if match else (place, "")
