"""The ways to the database, in the order in which they are tried, and what libpq is told of each."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

from . import foreign
from .errors import FallbackWarning, SettingsError
from .secrecy import forgetful, reveal
from .settings import Settings, are_ports, check_replicas, check_text, host_and_port

_KIMERA_DEFAULTS: Final = (
    # A parameter, its value, and the variables of libpq that are heard before it
    ("host", "localhost", ("PGSERVICE", "PGHOST", "PGHOSTADDR")),
    ("dbname", "kimera_swm", ("PGSERVICE", "PGDATABASE")),
    ("user", "kimera", ("PGSERVICE", "PGUSER")),
)

_CONNECTION_DEFAULTS: Final = {
    "fallback_application_name": "Kimera SWM",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # Keepalives see only idle peers. This bounds, in milliseconds, how long sent data may stay unacknowledged;
    # it equals idle + interval x count, as TCP_USER_TIMEOUT takes over from the count where both are set.
    "tcp_user_timeout": "25000",
}

_PLACE: Final = ("host", "hostaddr", "port")

_NUMBERS: Final = [name for name, value in _CONNECTION_DEFAULTS.items() if value.isdecimal()]


def ways(settings: Settings) -> Iterator[tuple[str, Mapping[str, str] | None]]:
    """Yield the ways to the database: a name for messages, and its libpq parameters, None where it is not configured.

    libpq's own variables are a way only where nothing of Kimera's is set. They are often there for other programs.
    """
    yield "KIMERA_DB_*", None if settings.credentials is None else _with_defaults(settings)
    url = settings.database_url
    yield "DATABASE_URL", None if url is None else parse(reveal(url), source="DATABASE_URL")
    if settings.credentials is None and settings.database_url is None:
        yield "PG*", {} if settings.libpq else None


def _with_defaults(settings: Settings) -> Mapping[str, str]:
    defaults = {
        name: value
        for name, value, variables in _KIMERA_DEFAULTS
        if not any(variable in os.environ for variable in variables)
    }
    return {**defaults, **{name: reveal(value) for name, value in (settings.credentials or {}).items()}}


@forgetful
def parse(conninfo: str, *, source: str = "conninfo") -> dict[str, str]:
    """Return the libpq parameters of *conninfo*: keyword=value pairs, or a URL of libpq's, SQLAlchemy's or JDBC's form.

    Raises SettingsError, which names *source* and never repeats *conninfo*: it can hold a password.
    """
    check_text(source, conninfo)
    conninfo = conninfo.strip()
    scheme, separator, _ = conninfo.partition("://")
    is_url = bool(separator) and "=" not in scheme
    if is_url:
        conninfo = foreign.url(conninfo, source)
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.Error as error:
        quoted = re.search(r'"([\w-]+)"', str(error))
        if not is_url and quoted and (found := re.search(rf"\b{quoted[1]}\s*=", conninfo)):
            raise foreign.unknown(quoted[1], conninfo[: found.start()], source) from None
        raise SettingsError(f"{source}: neither a postgresql:// URL nor keyword=value pairs") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{source}: what is written as %XX must be UTF-8") from None
    if not parameters:
        raise SettingsError(f"{source}: empty; give a postgresql:// URL or leave it out")
    # An @ or / that was not escaped leaves a part of the password in one of these, so they are not repeated.
    if "@" in parameters.get("host", "") or "@" in parameters.get("dbname", ""):
        raise SettingsError(f"{source}: write special characters of the password as %XX (@ is %40, / is %2F)")
    _check(parameters, source)
    return parameters


def _check(parameters: Mapping[str, str], source: str) -> None:
    """Raise SettingsError for a value that libpq would refuse only when it has begun to connect, or without advice."""
    if not are_ports(parameters.get("port", "")):
        raise SettingsError(
            f"{source}: the port is not a number from 1 to 65535; in a URL, write special characters as %XX, "
            "and an IPv6 address in [brackets]"
        )
    for name in _NUMBERS:
        if name in parameters and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", parameters[name]):
            raise SettingsError(f"{source}: {name} must be a whole number, without a unit")
    for host in parameters.get("host", "").split(","):
        try:
            if not host.startswith(("/", "@")):
                host.encode("idna")
        except UnicodeError:
            raise SettingsError(f"{source}: the host is not a name that DNS can have") from None
    if parameters.get("sslmode", "prefer") not in foreign.SSL_MODES:
        raise SettingsError(
            f"{source}: sslmode must be one of {', '.join(foreign.SSL_MODES)}; for no-verify write require"
        )


def resolve(parameters: Mapping[str, str], source: str) -> dict[str, str]:
    """Return *parameters* with what libpq adds from a service, its environment variables and its defaults.

    Raises SettingsError, which names *source* or libpq's variables, for a value that cannot be used.
    """
    _check(parameters, source)
    # Only a connection tells what a service says. libpq refuses this one before it looks for a host.
    refused = PGconn.connect_start(make_conninfo("", **{**parameters, "target_session_attrs": "-"}).encode())
    added = {
        # libpq takes bytes that are no UTF-8, such as a password's, and needs no help with them.
        option.keyword.decode(): option.val.decode(errors="surrogateescape")
        for option in refused.info
        if option.val and option.keyword.decode() not in ("target_session_attrs", *parameters)
    }
    _check(added, "libpq's PG* variables or service file")
    return {**added, **parameters}


def complete(parameters: Mapping[str, str], resolved: Mapping[str, str], settings: Settings) -> str:
    """Return the conninfo of *parameters*, with our defaults for what is not in *resolved* either."""
    # psycopg enforces connect_timeout but does not read service files, so what one says is written out.
    defaults = {name: resolved.get(name, value) for name, value in _CONNECTION_DEFAULTS.items()}
    if settings.connect_timeout is not None:
        defaults["connect_timeout"] = str(settings.connect_timeout)
    # Whatever the role, the database or PGCLIENTENCODING say: Python's text is Unicode.
    defaults["client_encoding"] = "UTF8"
    # psycopg tries several hosts one by one, but those of a service all at once.
    places = {name: resolved[name] for name in _PLACE if name in resolved}
    several = places if "," in places.get("host", places.get("hostaddr", "")) else {}
    return make_conninfo("", **{**defaults, **parameters, **several})


def each_host(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield a conninfo for each host of *parameters*, which can name several."""
    lists = {name: parameters[name].split(",") for name in _PLACE if name in parameters}
    lengths = {len(values) for values in lists.values()} - {1} or {1}
    for number in range(max(lengths) if len(lengths) == 1 else 0):
        # One port stands for all hosts.
        one = {name: values[number if len(values) > 1 else 0] for name, values in lists.items()}
        yield make_conninfo("", **{**parameters, **one})
    if len(lengths) > 1:
        yield make_conninfo("", **parameters)  # for libpq to refuse


def joined(hosts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the libpq parameters that name all *hosts*, in their order."""
    names = ["host", "port", *(["hostaddr"] if any("hostaddr" in host for host in hosts) else [])]
    return {name: ",".join(str(host.get(name, "")) for host in hosts) for name in names}


def with_replicas(parameters: Mapping[str, str], replicas: Sequence[str], source: str) -> dict[str, str]:
    """Return *parameters*, as resolve gives them, with *replicas* behind their own hosts: HOST or HOST:PORT each.

    A replica without a port has that of the first host. Raises SettingsError, which names *source*, for others.
    """
    check_replicas(source, replicas)
    own: list[dict[str, Any]] = [
        conninfo_to_dict(host) for host in each_host({k: parameters[k] for k in _PLACE if k in parameters})
    ]
    port = str(own[0].get("port", ""))
    return {**parameters, **joined([*own, *({"port": port, **host_and_port(replica)} for replica in replicas)])}


def wants_writes(parameters: Mapping[str, Any]) -> bool:
    """Return whether *parameters* ask for a server that takes writes."""
    return parameters.get("target_session_attrs") in ("read-write", "primary")


def refusal(conninfo: str) -> str:
    """Return why libpq refuses the parameters of *conninfo*, which it does before it looks for a host."""
    message = PGconn.connect_start(conninfo.encode()).get_error_message()
    return f"{message}; see https://www.postgresql.org/docs/current/libpq-connect.html"


def target(parameters: Mapping[str, str]) -> str:
    """Return where *parameters* lead, for messages: no password."""
    return " ".join(
        f"{key}={parameters[key]}" for key in ("host", "hostaddr", "port", "dbname", "user") if key in parameters
    )


@functools.cache  # once for each file
def warn_of_fallback(path: Path) -> None:
    """Warn that the SQLite file *path* serves."""
    warnings.warn(
        f"no PostgreSQL server serves: using the SQLite file {path}. Set KIMERA_DB_HOST and its companions or "
        "DATABASE_URL for a server, or KIMERA_SQLITE_FALLBACK=never to get an error instead",
        FallbackWarning,
        stacklevel=4,
    )


def redact(message: str, parameters: Mapping[str, str]) -> str:
    """Return *message* without the password of *parameters*."""
    password = parameters.get("password")
    return message.replace(password, "***") if password else message
