"""The specification's server settings, as fractions of the machine's memory, and a comparison of a server with them."""

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

# What a random page costs on an SSD, and how many reads it takes at once
_SSD: Final = {"random_page_cost": "1.1", "effective_io_concurrency": "200"}

CONNECTIONS: Final = 15
"""Connections that one pool opens unless told otherwise: 5, and an overflow of 10."""

_WORKING: Final = 4
"""The part of the memory, one in so many, that one work_mem of every connection may take together."""

_BOUNDS: Final = (128 * _MB, 16 * 2**40)
"""Memory of a machine: PostgreSQL's own defaults fill the least, and its settings can take 3/4 of the most."""

_LEAST_WORK_MEM: Final = 64 * _KB

_TOLERANCE: Final = 2.0
"""How many times as much or as little as recommended a setting may be without being of weight."""

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
    """A setting of the server. value: as postgresql.conf has it. restart: it is in force after a restart alone."""

    name: str
    value: str
    restart: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A setting as the server has it. value: bytes where it is a size. source: as pg_settings names it."""

    name: str
    value: float
    source: str
    pending_restart: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A setting of the server beside the recommended one.

    source: where the server has it from, as pg_settings names it. pending_restart: its file has another value, which
    a restart would bring. serious: it is more than twice or less than half of what is recommended.
    """

    name: str
    current: str
    recommended: str
    reason: str
    source: str
    pending_restart: bool
    serious: bool


def memory() -> int:
    """Return the bytes of memory this process may use: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def server_settings(memory: int) -> dict[str, str]:
    """Return postgresql.conf settings for a machine of *memory* bytes; at 8 GiB they are the specification's."""
    return {**{name: f"{max(_share(name, memory) // _MB, 1)}MB" for name in _SHARES}, **_SSD}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 8GB or 512MB, in PostgreSQL's units, which are powers of 1024.

    Raises InvalidValue for any other text.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidValue(f"expected a size such as 8GB, 1.5TB or 512MB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def recommend(memory: int, *, connections: int = CONNECTIONS) -> list[Recommendation]:
    """Return the settings for a machine of *memory* bytes that PostgreSQL has to itself.

    At 8 GiB they are the specification's. work_mem is its share of the memory, a 64th, as long as *connections*, what
    all pools open together, keep within a quarter of the memory when each takes one: up to 16. For more it is that
    quarter divided among them, because one query can take work_mem several times over and the server that runs out of
    memory is killed. Raises InvalidValue for memory outside 128 MiB to 16 TiB, and for more connections than leave
    64 kB each.
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
    """Return the bytes of memory of the server's machine where it is this one, None where that cannot be told.

    It is this one when the connection goes through a Unix socket or to a loopback address.
    """
    if not sql.is_postgres(conn):
        return None
    address = conn.info.hostaddr
    return memory() if not address or ipaddress.ip_address(address).is_loopback else None


def check(conn: Connection, *, memory: int | None = None, connections: int = CONNECTIONS) -> list[Check]:
    """Compare the server's settings with those of recommend, and return all of them.

    memory: bytes of the server's machine; this machine's if None. Raises InvalidValue when it is None and the server
    is on another machine, and UnsupportedByServer on SQLite, which has no such settings.
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
    """Return a size as PostgreSQL writes it: in the greatest unit that has no fraction, and never below 1 kB."""
    # In whole MB from 1 MB up, which is all that settings of a machine need
    size = size // _MB * _MB if size >= _MB else max(size, _KB)
    for unit in ("tb", "gb", "mb"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit.upper()}"
    return f"{size // _KB}kB"
