# Generated from kimera_sql/aio/servers.py by .ci/twins.py: change that one.
"""What a server makes of a client, by what it says of itself."""

from __future__ import annotations

import enum
import re
from time import monotonic
from typing import Any, Final, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PGconn, Ping

from . import sql
from .errors import InvalidValue
from .replication import Seen
from .sql.rows import Row
from .strategies import each_host
from .twins import call

_queries = sql.Queries("connect")

_TOO_MANY: Final = re.compile(
    "too many (clients|connections)|remaining connection slots"
    "|no more connections allowed|query_wait_timeout|client_login_timeout|server login has been failing"
)
"""What a server with no connection to spare says, and in the second line PgBouncer, whose server may be away.

libpq passes no error code of a failed connection on.
"""

_READ_ONLY: Final = re.compile("session is read-only|server is in hot standby mode")
"""What libpq says of a server that takes no writes, where it was to find one that does."""

_SEVERAL: Final = "Multiple connection attempts"
"""How psycopg begins to list what has become of several addresses of one name."""


class Answer(enum.Enum):
    """What a server that took no connection makes of it."""

    NONE = enum.auto()
    LATER = enum.auto()
    NO_PRIMARY = enum.auto()
    NO = enum.auto()


def ask(conninfo: str, error: psycopg.Error) -> Answer:
    """Return what the servers of *conninfo* make of an attempt to connect that ended with *error*."""
    if _TOO_MANY.search(str(error)):
        return Answer.LATER
    hosts = [*each_host(conninfo_to_dict(conninfo))]
    if len(hosts) > 1 and _READ_ONLY.search(str(error)):
        return Answer.NO_PRIMARY
    if isinstance(error, ConnectionTimeout) and len(hosts) == 1 and _SEVERAL not in str(error):
        return Answer.NONE
    # Of several hosts the error is the last one's, and libpq tells no error code of a failed connection. A ping tells
    # whether there is a server, and whether it is starting or shutting down.
    answers = set()
    for host in hosts:
        answer = call(PGconn.ping, host.encode())
        if answer == Ping.NO_RESPONSE:
            # It finds none whose TLS is not what sslmode demands, so it asks once more without.
            answer = call(PGconn.ping, make_conninfo(host, sslmode="disable").encode())
        answers.add(answer)
    if Ping.REJECT in answers:
        return Answer.LATER
    return Answer.NONE if answers == {Ping.NO_RESPONSE} else Answer.NO


def takes_writes(connection: psycopg.Connection[Any]) -> bool | None:
    """Return whether *connection*'s server takes writes, by what it has said of itself; None where it says nothing."""
    said = [connection.info.parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only")]
    return None if None in said else "on" not in said


def behind_pooler(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler, such as PgBouncer, stands between *connection* and the server.

    In transaction mode each transaction can have another of the server's processes. What a session keeps, such as SET
    and prepared statements, is then another session's.
    """
    with connection.transaction():
        return _queries.backend_pid.fetchval(connection, int) != connection.info.backend_pid


def require_session(connection: psycopg.Connection[Any], what: str) -> None:
    """Raise InvalidValue behind a pooler, which has no session for *what* alone."""
    if behind_pooler(connection):
        raise InvalidValue(f"{what} needs a session of its own; connect to the server and not to a pooler")


def position(connection: psycopg.Connection[Any]) -> Seen:
    """Return where *connection*'s server is in its cluster's history."""
    at = monotonic()
    row = _queries.position.fetchone(connection)
    return Seen(at, *cast(Row, row))
