"""What the environment says about the database, read once into a frozen Settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from .errors import SettingsError
from .foreign import SECRETS
from .secrecy import Secret, forgetful, hide, reveal

T = TypeVar("T")

FALLBACKS: Final = ("unconfigured", "always", "never")
PREPARED_STATEMENTS: Final = ("direct", "always", "never")

_CREDENTIALS: Final = {
    "host": "KIMERA_DB_HOST",
    "port": "KIMERA_DB_PORT",
    "dbname": "KIMERA_DB_NAME",
    "user": "KIMERA_DB_USER",
    "password": "KIMERA_DB_PASSWORD",
}

_LIBPQ: Final = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")
"""libpq's variables that name a server or a database."""

_SERVICE_LINK: Final = r"tcp://[^/@]+:\d+"
"""What Kubernetes sets KIMERA_DB_PORT to, unasked, in every pod beside a service named kimera-db."""

_LONGEST: Final = 2_147_483
"""The most seconds that a timeout of PostgreSQL's can have."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the database is and how its pool behaves.

    The password and the URL are kept as Secrets: they are not in its repr, and it cannot be pickled with them.

    credentials: libpq parameters from the KIMERA_DB_* variables that are set, None when none is set.
    database_url: DATABASE_URL, None when it is not set.
    replicas: further servers of the cluster of the first of these that is configured (KIMERA_DB_REPLICAS), as HOST or
        HOST:PORT each, with commas between them. They are read from while they are standbys, and one of them is written
        to once it has taken the primary's place.
    libpq: whether PGSERVICE, PGHOST, PGHOSTADDR or PGDATABASE is set; if neither credentials nor database_url are,
        libpq's own variables then say where the database is.
    sqlite_path: the SQLite file for development (KIMERA_SQLITE_PATH).
    sqlite_fallback: when that file serves (KIMERA_SQLITE_FALLBACK): "unconfigured", where neither credentials,
        database_url nor libpq are set; "always", also where their servers cannot be reached; "never".
    prepared_statements: whether psycopg prepares what is run often (KIMERA_PREPARED_STATEMENTS): "direct", where no
        pooler such as PgBouncer stands before the server; "always", which PgBouncer can do from 1.22 on; "never".
    pool_size: connections kept open (KIMERA_POOL_SIZE).
    pool_overflow: further connections under load (KIMERA_POOL_OVERFLOW).
    pool_timeout: seconds to wait for a connection (KIMERA_POOL_TIMEOUT).
    pool_max_waiting: how many may wait for a connection at once (KIMERA_POOL_MAX_WAITING); 0 sets no limit.
    pool_recycle: seconds after which a connection is replaced (KIMERA_POOL_RECYCLE).
    connect_timeout: seconds to wait for a server to answer, per host (KIMERA_CONNECT_TIMEOUT). None leaves it to
        libpq's service file or PGCONNECT_TIMEOUT, else it is 10.
    statement_timeout: seconds that a statement may take (KIMERA_STATEMENT_TIMEOUT), 0 for any number. A server that is
        silent for a second more is given up.
    lock_timeout: seconds to wait for a lock (KIMERA_LOCK_TIMEOUT), 0 for any number.
    idle_in_transaction_timeout: seconds that a transaction may be left open with nothing to do
        (KIMERA_IDLE_IN_TRANSACTION_TIMEOUT), 0 for any number.
    replica_max_lag: how many seconds a standby that is read from may be behind the primary (KIMERA_REPLICA_MAX_LAG).
    replica_wait: seconds to wait for a standby to replay what a reader wants to see, before the primary is read from
        (KIMERA_REPLICA_WAIT).
    search_sample: one search in so many is kept in the database, to measure and tune recall with
        (KIMERA_SEARCH_SAMPLE). None keeps none.
    """

    credentials: Mapping[str, str | Secret] | None = None
    database_url: str | Secret | None = None
    libpq: bool = False
    replicas: tuple[str, ...] = ()
    sqlite_path: Path = Path("kimera_development.db")
    sqlite_fallback: str = "unconfigured"
    prepared_statements: str = "direct"
    pool_size: int = 5
    pool_overflow: int = 10
    pool_timeout: float = 30.0
    pool_max_waiting: int = 0
    pool_recycle: float = 3600.0
    connect_timeout: int | None = None
    statement_timeout: float = 30.0
    lock_timeout: float = 10.0
    idle_in_transaction_timeout: float = 60.0
    replica_max_lag: float = 10.0
    replica_wait: float = 1.0
    search_sample: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("pool_size", 1),
            ("pool_overflow", 0),
            ("pool_timeout", 0.001),
            ("pool_max_waiting", 0),
            ("pool_recycle", 1),
            # libpq reads 1 as 2, and 0 as no limit at all
            ("connect_timeout", 2),
            # What is known of a server is up to three seconds old.
            ("replica_max_lag", 3),
            ("replica_wait", 0),
            ("search_sample", 1),
        ):
            value = getattr(self, name)
            if value is None and name in ("connect_timeout", "search_sample"):
                continue
            if not isinstance(value, int | float) or not least <= value < float("inf"):
                raise SettingsError(f"{name} must be a number from {least} up, got {value!r}")

        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_timeout"):
            # PostgreSQL counts milliseconds, in an INTEGER
            if (value := getattr(self, name)) != 0 and not 0.001 <= value <= _LONGEST:
                raise SettingsError(f"{name} must be 0, or a number from 0.001 to {_LONGEST}, got {value!r}")

        check_replicas("replicas", self.replicas)

        for name, choices in (("sqlite_fallback", FALLBACKS), ("prepared_statements", PREPARED_STATEMENTS)):
            if (value := getattr(self, name)) not in choices:
                raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

        credentials = {name: reveal(value) for name, value in (self.credentials or {}).items()}
        for name, text in credentials.items():
            check_text(_CREDENTIALS.get(name, name), text)
        if not are_ports(port := credentials.get("port", "")):
            got = "" if "@" in port else f", got {port!r}"  # an @ is that of a URL, with its password
            raise SettingsError(f"KIMERA_DB_PORT must be a number from 1 to 65535{got}")
        if re.search(r".@|[\[\]]|://|(^|,)[^:/,]+:\d+(,|$)", credentials.get("host", "")):
            raise SettingsError(
                "KIMERA_DB_HOST must be the host alone; write its port as KIMERA_DB_PORT, an IPv6 address without "
                "brackets, and a URL as DATABASE_URL"
            )

        if self.credentials is not None:
            hidden = {name: hide(value) if name in SECRETS else value for name, value in self.credentials.items()}
            object.__setattr__(self, "credentials", hidden)
        if self.database_url is not None:
            object.__setattr__(self, "database_url", hide(self.database_url))

    @classmethod
    @forgetful
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read KIMERA_*, DATABASE_URL and libpq's variables from *environ*.

        Raises SettingsError for a variable that is set but empty, and for one that is not the number it should be.
        """
        credentials = {
            parameter: value
            for parameter, variable in _CREDENTIALS.items()
            if (value := _read(environ, variable, str)) is not None
        }
        database_url = _read(environ, "DATABASE_URL", str)
        libpq = any(environ.get(variable) for variable in _LIBPQ)
        if re.fullmatch(_SERVICE_LINK, port := credentials.get("port", "")):
            del credentials["port"]
            if not (credentials or database_url or libpq):
                raise SettingsError(
                    f"KIMERA_DB_PORT is {port!r}, which Kubernetes sets for a service named kimera-db, and nothing "
                    "else says where the database is: set KIMERA_DB_HOST or DATABASE_URL; for an SQLite file, set "
                    "enableServiceLinks: false in the pod, or rename the service"
                )
        others = {
            "sqlite_path": _read(environ, "KIMERA_SQLITE_PATH", Path),
            "sqlite_fallback": _read(environ, "KIMERA_SQLITE_FALLBACK", str),
            "prepared_statements": _read(environ, "KIMERA_PREPARED_STATEMENTS", str),
            "pool_size": _read(environ, "KIMERA_POOL_SIZE", int),
            "pool_overflow": _read(environ, "KIMERA_POOL_OVERFLOW", int),
            "pool_timeout": _read(environ, "KIMERA_POOL_TIMEOUT", float),
            "pool_max_waiting": _read(environ, "KIMERA_POOL_MAX_WAITING", int),
            "pool_recycle": _read(environ, "KIMERA_POOL_RECYCLE", float),
            "connect_timeout": _read(environ, "KIMERA_CONNECT_TIMEOUT", int),
            "statement_timeout": _read(environ, "KIMERA_STATEMENT_TIMEOUT", float),
            "lock_timeout": _read(environ, "KIMERA_LOCK_TIMEOUT", float),
            "idle_in_transaction_timeout": _read(environ, "KIMERA_IDLE_IN_TRANSACTION_TIMEOUT", float),
            "replicas": _read(environ, "KIMERA_DB_REPLICAS", _list),
            "replica_max_lag": _read(environ, "KIMERA_REPLICA_MAX_LAG", float),
            "replica_wait": _read(environ, "KIMERA_REPLICA_WAIT", float),
            "search_sample": _read(environ, "KIMERA_SEARCH_SAMPLE", int),
        }
        return cls(
            credentials=credentials or None,
            database_url=database_url,
            libpq=libpq,
            **{name: value for name, value in others.items() if value is not None},  # type: ignore[arg-type]
        )

    def session(self) -> dict[str, str]:
        """Return what each session of the pool sets on the server."""
        return {
            "statement_timeout": milliseconds(self.statement_timeout),
            "lock_timeout": milliseconds(self.lock_timeout),
            "idle_in_transaction_session_timeout": milliseconds(self.idle_in_transaction_timeout),
        }


# Its arguments are variables of a frame of their own.
Settings.__init__ = forgetful(Settings.__init__)  # type: ignore[method-assign]


def _read(environ: Mapping[str, str], variable: str, convert: Callable[[str], T]) -> T | None:
    text = environ.get(variable)
    if text is None:
        return None
    text = text.rstrip("\r\n") if variable == _CREDENTIALS["password"] else _unquoted(text.strip())
    if not text.strip():
        # An empty value is a deployment's mistake. Passing over it would reach another database in silence.
        raise SettingsError(f"{variable} is set but empty; give it a value or unset it")
    try:
        return convert(text)
    except ValueError:
        raise SettingsError(f"{variable} must be a number, got {text!r}") from None


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


def _unquoted(text: str) -> str:
    # Docker's --env-file keeps the quotes that a shell takes off.
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] in "\"'" else text


def milliseconds(seconds: float) -> str:
    """Return *seconds* as PostgreSQL takes a timeout."""
    return f"{round(seconds * 1000)}ms"


def check_text(name: str, text: str) -> None:
    """Raise SettingsError, which repeats *name* alone, for a *text* that psycopg cannot hand to libpq."""
    # What is not UTF-8 in the environment reaches Python as surrogates.
    if re.search("[\0\ud800-\udfff]", text):
        raise SettingsError(f"{name} is not text in UTF-8, or has a NUL in it")


def check_replicas(name: str, replicas: object) -> None:
    """Raise SettingsError, which repeats *name* alone, for *replicas* that are no list of HOST or HOST:PORT."""
    if not isinstance(replicas, Sequence) or isinstance(replicas, str | bytes):
        raise SettingsError(f"{name} must be a list of HOST or HOST:PORT")
    for number, replica in enumerate(replicas, 1):
        # What is wrong there can be a URL, with its password.
        if not isinstance(replica, str) or not host_and_port(replica):
            raise SettingsError(
                f"{name}: item {number} is neither HOST nor HOST:PORT; an IPv6 address has [brackets], and user, "
                "password and all else are the primary's"
            )


def host_and_port(text: str) -> dict[str, str]:
    """Return the libpq parameters of HOST or HOST:PORT; none where *text* is neither."""
    found = re.fullmatch(r"(?:\[([\da-fA-F:.%]+)\]|([/@][^,:\0]*|[^\s,:/@\[\]=\0\ud800-\udfff]+))(?::([0-9]+))?", text)
    if not found or not are_ports(found[3] or ""):
        return {}
    return {"host": found[1] or found[2], **({"port": found[3]} if found[3] else {})}


def are_ports(text: str) -> bool:
    """Return whether *text* is a port or several with commas between them, any of which can be left out."""
    return all(not port or (port.isdecimal() and 0 < int(port) < 2**16) for port in text.split(","))
