"""Recommend the specification's server settings for a machine's memory, and compare a server with them."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import checks, sql
from ..errors import InvalidValue
from ..sql import Connection

_queries = sql.Queries("tuning")

_KB: Final = 2**10
_MB: Final = 2**20
_GB: Final = 2**30

# The specification gives 2GB, 6GB, 128MB and 512MB for a machine of 8 GB.
_SHARES: Final = {
    "shared_buffers": (1, 4),
    "effective_cache_size": (3, 4),
    "work_mem": (1, 64),
    "maintenance_work_mem": (1, 16),
}

# The cost of a random page on an SSD, and the number of parallel reads it handles
_SSD: Final = {"random_page_cost": "1.1", "effective_io_concurrency": "200"}

CONNECTIONS: Final = 15
"""Connections that one pool opens by default: 5, and an overflow of 10."""

_WORKING: Final = 4
"""The memory is divided by this for all connections together, when each uses work_mem once."""

_BOUNDS: Final = (128 * _MB, 16 * 2**40)
"""Least and most memory, in bytes: PostgreSQL's defaults fill the least, its settings can take 3/4 of the most."""

_LEAST_WORK_MEM: Final = 64 * _KB

_TOLERANCE: Final = 2.0
"""The factor above or below the recommendation up to which a difference is not serious."""

_RESTART: Final = "shared_buffers"

_REASONS: Final = {
    "shared_buffers": "a quarter of the memory, the rest is the system's cache, which PostgreSQL reads through",
    "effective_cache_size": "three quarters of the memory; a hint for the planner that takes none",
    "maintenance_work_mem": "a sixteenth of the memory; what index builds and VACUUM may take",
    "random_page_cost": "an SSD reads a random page nearly as fast as the next one",
    "effective_io_concurrency": "an SSD serves many reads at once",
}

_UNITS: Final = {"kb": _KB, "mb": _MB, "gb": _GB, "tb": 2**40}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(kb|mb|gb|tb)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A server setting. value: as in postgresql.conf. restart: whether it takes effect only after a restart."""

    name: str
    value: str
    restart: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A setting of the running server. value: in bytes if it is a size. source: as in pg_settings."""

    name: str
    value: float
    source: str
    pending_restart: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A server setting compared with the recommended one.

    source: where the current value comes from, as in pg_settings. pending_restart: the configuration file has another
    value, which takes effect after a restart. serious: the value is more than twice or less than half of the
    recommended one.
    """

    name: str
    current: str
    recommended: str
    reason: str
    source: str
    pending_restart: bool
    serious: bool


def memory() -> int:
    """Return the memory in bytes that this process may use: the machine's, or its control group's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def server_settings(memory: int) -> dict[str, str]:
    """Return the postgresql.conf settings for a machine with *memory* bytes; at 8 GiB they are the specification's."""
    return {**{name: f"{max(_share(name, memory) // _MB, 1)}MB" for name in _SHARES}, **_SSD}


def parse_size(text: str) -> int:
    """Return a size such as 8GB or 512MB in bytes. The units are PostgreSQL's, powers of 1024.

    Raises InvalidValue for text that is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidValue(f"expected a size such as 8GB, 1.5TB or 512MB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def recommend(memory: int, *, connections: int = CONNECTIONS) -> list[Recommendation]:
    """Return the settings for a machine with *memory* bytes that runs only PostgreSQL.

    At 8 GiB they are the specification's. *connections* counts the connections that all pools open together. If each
    uses work_mem once, they may take a quarter of the memory. So work_mem is the specification's 64th of the memory for
    up to 16 connections, and the quarter divided among them for more. (One query can take work_mem several times, and a
    server that runs out of memory is killed.) Raises InvalidValue for memory outside 128 MiB to 16 TiB, and for so many
    connections that less than 64 kB is left for each.
    """
    least, most = _BOUNDS
    if not least <= checks.integer("memory", memory, least=0, most=2**63 - 1) <= most:
        raise InvalidValue(f"memory: {_size(memory)} is not within {_size(least)} to {_size(most)}")
    share = _share("work_mem", memory)
    safe = memory // _WORKING // checks.integer("connections", connections, least=1, most=262143)
    if safe < _LEAST_WORK_MEM:
        raise InvalidValue(
            f"connections: {connections:,} leave each less than 64 kB of work_mem on {_size(memory)}; use fewer"
        )
    reason = f"a 64th of the memory, safe for {connections:,} connections"
    if safe < share:
        reason = (
            f"a quarter of the memory divided among {connections:,} connections; the specification's {_size(share)} "
            f"could take {_size(share * connections)}"
        )
    sizes = {name: _share(name, memory) for name in _SHARES} | {"work_mem": min(share, safe)}
    values = {name: _size(size) for name, size in sizes.items()} | _SSD
    reasons = {**_REASONS, "work_mem": reason}
    return [Recommendation(name, value, name == _RESTART, reasons[name]) for name, value in values.items()]


def machine(conn: Connection) -> int | None:
    """Return the memory in bytes of the server's machine if it is this one, None if that cannot be told.

    A server reached through a Unix socket or at a loopback address is on this machine.
    """
    if not sql.is_postgres(conn):
        return None
    address = conn.info.hostaddr
    return memory() if not address or ipaddress.ip_address(address).is_loopback else None


def check(conn: Connection, *, memory: int | None = None, connections: int = CONNECTIONS) -> list[Check]:
    """Compare the server's settings with the recommended ones, and return all comparisons.

    memory: of the server's machine, in bytes; by default this machine's. connections: as in recommend. Raises
    InvalidValue without *memory* if the server is on another machine, and UnsupportedByServer on SQLite, which has no
    such settings.
    """
    conn = sql.require_postgres(conn, "SQLite has no server settings to check")
    memory = machine(conn) if memory is None else memory
    if memory is None:
        raise InvalidValue(f"memory: the server is on another machine ({conn.info.host}); say how much it has")
    wanted = recommend(memory, connections=connections)
    rows = _queries.settings.fetchall(conn, ServerSetting, names=[one.name for one in wanted])
    found = {one.name: one for one in rows}
    return [_compare(one, found[one.name]) for one in wanted if one.name in found]


def _compare(wanted: Recommendation, found: ServerSetting) -> Check:
    is_size = wanted.name in _SHARES
    target = parse_size(wanted.value) if is_size else float(wanted.value)
    return Check(
        name=wanted.name,
        current=_size(int(found.value)) if is_size else f"{found.value:g}",
        recommended=wanted.value,
        reason=wanted.reason,
        source=found.source,
        pending_restart=found.pending_restart,
        serious=not target / _TOLERANCE <= found.value <= target * _TOLERANCE,
    )


def _share(name: str, memory: int) -> int:
    part, whole = _SHARES[name]
    return memory * part // whole


def _size(size: int) -> str:
    """Return a size in PostgreSQL's form: in the largest unit that needs no fraction, and at least 1 kB."""
    # From 1 MB up in whole MB: settings for a machine need no more precision.
    size = size // _MB * _MB if size >= _MB else max(size, _KB)
    for unit in ("tb", "gb", "mb"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit.upper()}"
    return f"{size // _KB}kB"
