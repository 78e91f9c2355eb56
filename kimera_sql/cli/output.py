"""What commands print: dataclasses as a table, or as JSON with --json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give *parser* the option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def print_json(value: Any) -> None:
    """Print *value*, in which times are ISO 8601 and whatever else JSON has no form for is text."""
    print(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, (datetime, date)) else str(value)


def print_records(records: Sequence[DataclassInstance], *, as_json: bool, empty: str) -> None:
    """Print *records*, dataclasses of one kind, as JSON or as a table; *empty* where that has no row."""
    if as_json:
        print_json([asdict(record) for record in records])
    elif records:
        names = [field.name for field in fields(records[0])]
        print_table(names, [[getattr(record, name) for name in names] for record in records])
    else:
        print(empty)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print *rows* under *header*, numbers to the right."""
    cells = [list(header), *([_cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    for row in cells:
        shown = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right, strict=True)
        )
        print("  ".join(shown).rstrip())


def size_text(size: int) -> str:
    """Return a number of bytes for people: 512 bytes, 13.4 MB. The units are PostgreSQL's, powers of 1024."""
    if size < 1024:
        return f"{size} bytes"
    exponent = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**exponent:,.1f} {('kB', 'MB', 'GB', 'TB')[exponent - 1]}"


def time_text(seconds: float) -> str:
    """Return a length of time for people, in the largest unit that there are two of: 850 ms, 90 s, 3.5 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{number_text(seconds / length)} {unit}"
    return f"{number_text(seconds * 1000)} ms"


def number_text(number: float) -> str:
    """Return a number for people with two digits that count, or all those before the point: 1,234 or 12 or 0.12."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # A pid is to be copied, into pg_terminate_backend() say.
        if name == "pid" or name.endswith("_pid"):
            return str(value)
        if name in ("size", "bytes") or name.endswith("_bytes"):
            return size_text(value)
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return str(value)
