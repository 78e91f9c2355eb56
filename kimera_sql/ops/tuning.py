"""The specification's server settings as fractions of the machine's memory, and a server's settings beside them."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import checks, sql
from ..errors import InvalidValue
from ..servers import behind_pooler
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

_SSD: Final = {"random_page_cost": "1.1", "effective_io_concurrency": "200"}

_RESTART: Final = frozenset({"shared_buffers"})
"""The settings of these that take effect only after a restart."""

_REASONS: Final = {
    "shared_buffers": "a quarter of the memory, the rest is the system's cache, which PostgreSQL reads through",
    "effective_cache_size": "three quarters of the memory; a hint for the planner that takes none",
    "maintenance_work_mem": "a sixteenth of the memory; what index builds and VACUUM may take",
    "random_page_cost": "an SSD reads a random page nearly as fast as the next one",
    "effective_io_concurrency": "an SSD serves many reads at once",
}

CONNECTIONS: Final = 15
"""How many connections one pool can open unless told otherwise: 5, and an overflow of 10."""

_WORKING_SHARE: Final = (1, 4)
"""The part of the memory that all connections together may take when each takes work_mem once."""

_LEAST_WORK_MEM: Final = 64 * _KB
"""The least that PostgreSQL accepts."""

_LEAST_MEMORY: Final = 128 * _MB
"""PostgreSQL's own defaults fill it."""

_MOST_MEMORY: Final = 16 * 2**40
"""Up to this each setting can take its share."""

_TOLERANCE: Final = 2.0
"""By what factor a setting may differ from the recommended one before that is serious."""

_UNITS: Final = {"kb": _KB, "mb": _MB, "gb": _GB, "tb": 2**40}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(kb|mb|gb|tb)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A setting of the server. value: as in postgresql.conf. restart: it takes effect only after a restart."""

    name: str
    value: str
    restart: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A setting as the server has it. value: in bytes if it is a size. source: as pg_settings names it."""

    name: str
    value: float
    source: str
    pending_restart: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A server setting compared with the recommended one.

    source: where the server has it from, as pg_settings names it. pending_restart: its file has another value, which
    takes effect after a restart. serious: it is more than twice or less than half of what is recommended.
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
    """Return postgresql.conf settings for a machine of *memory* bytes; at 8 GiB they are the specification's."""
    return {name: f"{max(_share(memory, part) // _MB, 1)}MB" for name, part in _SHARES.items()} | _SSD


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

    At 8 GiB they are the specification's. connections: how many all pools can open together. work_mem is a 64th of the
    memory for up to 16 connections; for more it is a quarter of the memory divided among them, because one query can
    take work_mem several times over, and a server that runs out of memory is killed. Raises InvalidValue for memory
    outside 128 MiB to 16 TiB, and for so many connections that less than 64 kB is left for each.
    """
    if not _LEAST_MEMORY <= checks.integer("memory", memory, least=0, most=2**63 - 1) <= _MOST_MEMORY:
        raise InvalidValue(f"memory: {_size(memory)} is not within {_size(_LEAST_MEMORY)} to {_size(_MOST_MEMORY)}")
    share = _share(memory, _SHARES["work_mem"])
    safe = _share(memory, _WORKING_SHARE) // checks.integer("connections", connections, least=1, most=262143)
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
    sizes = {name: _share(memory, part) for name, part in _SHARES.items()} | {"work_mem": min(share, safe)}
    values = {name: _size(size) for name, size in sizes.items()} | _SSD
    reasons = {**_REASONS, "work_mem": reason}
    return [Recommendation(name, value, name in _RESTART, reasons[name]) for name, value in values.items()]


def machine(conn: Connection) -> int | None:
    """Return the bytes of memory of the server's machine if it is this one, and None otherwise.

    It is this one if the connection goes through a Unix socket or to a loopback address, and not to a pooler.
    """
    if not sql.is_postgres(conn) or behind_pooler(conn):
        return None
    address = conn.info.hostaddr
    return memory() if not address or ipaddress.ip_address(address).is_loopback else None


def check(conn: Connection, *, memory: int | None = None, connections: int = CONNECTIONS) -> list[Check]:
    """Return the server's settings beside those of recommend.

    memory: that of the server's machine in bytes, which must be given unless machine knows it; InvalidValue is raised
    without it. Raises UnsupportedByServer on SQLite, which has no such settings.
    """
    conn = sql.require_postgres(conn, "SQLite has no server settings to check")
    memory = machine(conn) if memory is None else memory
    if memory is None:
        raise InvalidValue(
            f"memory: the server is not known to be on this machine ({conn.info.host}); say how much it has"
        )
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


def _share(memory: int, part: tuple[int, int]) -> int:
    numerator, denominator = part
    return memory * numerator // denominator


def _size(size: int) -> str:
    """Return a size as PostgreSQL writes it: a whole number of the largest unit that fits, and never below 1 kB."""
    # From 1 MB up in whole MB: nobody wants to read 2097151kB.
    size = size // _MB * _MB if size >= _MB else max(size, _KB)
    for unit in ("tb", "gb", "mb"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit.upper()}"
    return f"{size // _KB}kB"
