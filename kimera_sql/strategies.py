"""The ways to the database, in the order in which they are tried, and what libpq is told of each."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .errors import FallbackWarning, SettingsError
from .settings import Settings

_KIMERA_DEFAULTS: Final = {"host": "localhost", "port": "5432", "dbname": "kimera_swm", "user": "kimera"}

_CONNECTION_DEFAULTS: Final = {
    "application_name": "Kimera SWM",
    # Whatever the role, the database or PGCLIENTENCODING say: Python's text is Unicode.
    "client_encoding": "UTF8",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "5",
    # Keepalives see only idle peers. This bounds, in milliseconds, how long sent data may stay unacknowledged;
    # it equals idle + interval x count, as TCP_USER_TIMEOUT takes over from the count where both are set.
    "tcp_user_timeout": "80000",
}


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
    """Return the libpq parameters of *conninfo*: a URL, SQLAlchemy's form of one, or keyword=value pairs.

    Raises SettingsError, which names *source* and never repeats *conninfo*: it can hold a password.
    """
    scheme, separator, rest = conninfo.strip().partition("://")
    if separator and "=" not in scheme:
        if scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise SettingsError(f"{source}: expected a URL that begins with postgresql://")
        conninfo = f"postgresql://{rest}"
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.Error:
        raise SettingsError(f"{source}: neither a postgresql:// URL nor keyword=value pairs") from None
    if not parameters:
        raise SettingsError(f"{source}: empty; give a postgresql:// URL or leave it out")
    # An @ or / that was not escaped leaves a part of the password in one of these, so they are not repeated.
    if "@" in parameters.get("host", "") or "@" in parameters.get("dbname", ""):
        raise SettingsError(f"{source}: write special characters of the password as %XX (@ is %40, / is %2F)")
    _check_port(parameters, source)
    return parameters


def _check_port(parameters: Mapping[str, str], source: str) -> None:
    ports = parameters.get("port", "").split(",")
    if not all(not port or (port.isdecimal() and 0 < int(port) < 2**16) for port in ports):
        raise SettingsError(
            f"{source}: the port is not a number from 1 to 65535; in a URL, write special characters as %XX"
        )


def conninfo(parameters: Mapping[str, str], settings: Settings, source: str) -> str:
    """Return the conninfo of *parameters*, with the defaults for what they leave out. Raises SettingsError."""
    _check_port(parameters, source)
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
