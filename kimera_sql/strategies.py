"""The ways to the database, in the order in which they are tried, and what libpq is told of each."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from . import foreign
from .errors import FallbackWarning, SettingsError
from .settings import Settings

_KIMERA_DEFAULTS: Final = {"host": "localhost", "port": "5432", "dbname": "kimera_swm", "user": "kimera"}

_CONNECTION_DEFAULTS: Final = {
    "application_name": "Kimera SWM",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "5",
    # Keepalives see only idle peers. This bounds, in milliseconds, how long sent data may stay unacknowledged;
    # it equals idle + interval x count, as TCP_USER_TIMEOUT takes over from the count where both are set.
    "tcp_user_timeout": "80000",
}

_NUMBERS: Final = ["connect_timeout", *(name for name, value in _CONNECTION_DEFAULTS.items() if value.isdecimal())]


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to the database: a name for messages, and its libpq parameters if it is configured."""

    name: str
    parameters: Callable[[Settings], Mapping[str, str] | None]


def _kimera_credentials(settings: Settings) -> Mapping[str, str] | None:
    if settings.credentials is None:
        return None
    return {**_KIMERA_DEFAULTS, **settings.credentials}


def _database_url(settings: Settings) -> Mapping[str, str] | None:
    if settings.database_url is None:
        return None
    return parse(settings.database_url, source="DATABASE_URL")


STRATEGIES: Final = (
    Strategy("KIMERA_DB_*", _kimera_credentials),
    Strategy("DATABASE_URL", _database_url),
)


def parse(conninfo: str, *, source: str = "conninfo") -> dict[str, str]:
    """Return the libpq parameters of *conninfo*: keyword=value pairs, or a URL of libpq's, SQLAlchemy's or JDBC's form.

    Raises SettingsError, which names *source* and never repeats *conninfo*: it can hold a password.
    """
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
    if not parameters:
        raise SettingsError(f"{source}: empty; give a postgresql:// URL or leave it out")
    # An @ or / that was not escaped leaves a part of the password in one of these, so they are not repeated.
    if "@" in parameters.get("host", "") or "@" in parameters.get("dbname", ""):
        raise SettingsError(f"{source}: write special characters of the password as %XX (@ is %40, / is %2F)")
    _check(parameters, source)
    return parameters


def _check(parameters: Mapping[str, str], source: str) -> None:
    """Raise SettingsError for a value that libpq would refuse only when it has begun to connect, or without advice."""
    if not _are_ports(parameters.get("port", "")):
        raise SettingsError(
            f"{source}: the port is not a number from 1 to 65535; in a URL, write special characters as %XX, "
            "and an IPv6 address in [brackets]"
        )
    for name in _NUMBERS:
        if name in parameters and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", parameters[name]):
            raise SettingsError(f"{source}: {name} must be a whole number, without a unit")
    if parameters.get("sslmode", "prefer") not in foreign.SSL_MODES:
        raise SettingsError(
            f"{source}: sslmode must be one of {', '.join(foreign.SSL_MODES)}; for no-verify write require"
        )


def _are_ports(text: str) -> bool:
    return all(not port or (port.isdecimal() and 0 < int(port) < 2**16) for port in text.split(","))


def conninfo(parameters: Mapping[str, str], settings: Settings, source: str) -> str:
    """Return the conninfo of *parameters*, with the defaults for what they leave out. Raises SettingsError."""
    _check(parameters, source)
    return make_conninfo("", **{**_CONNECTION_DEFAULTS, "connect_timeout": str(settings.connect_timeout), **parameters})


def target(parameters: Mapping[str, str]) -> str:
    """Return where *parameters* lead, for messages: no password."""
    return " ".join(f"{key}={parameters[key]}" for key in ("host", "port", "dbname", "user") if key in parameters)


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
