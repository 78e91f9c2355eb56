"""Arguments that several groups of commands take."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from ..errors import InvalidValue, SettingsError
from ..ops import tuning

_OPTIONS: Final = {
    "age": "--older-than",
    "batch": "--batch",
    "connections": "--connections",
    "cores": "--cores",
    "ef_construction": "--ef-construction",
    "folder": "--dir",
    "growth": "--growth",
    "into": "--into",
    "k": "--k",
    "keep": "--keep",
    "keep_days": "--keep-days",
    "leave_out": "--leave-out",
    "lists": "--lists",
    "lock_timeout": "--lock-timeout",
    "lsn": "--to-lsn",
    "m": "--m",
    "memory": "--ram",
    "model": "--model",
    "name": "--to-name",
    "path": "FILE",
    "precision": "--precision",
    "prefix": "--prefix",
    "processes": "--processes",
    "qps": "--qps",
    "rate": "--rate",
    "recall": "--recall",
    "retries": "--retries",
    "rows": "--rows",
    "sample": "--sample",
    "similarity": "--similarity",
    "slot": "--slot",
    "target": "--target",
    "time": "--to",
    "timeout": "--timeout",
    "xid": "--to-xid",
}
"""The parameters that functions name in their messages, as options of commands."""


def in_options(message: str) -> str:
    """Return the *message* of an InvalidValue with the option in place of the parameter that it begins with."""
    field, colon, rest = message.partition(": ")
    return f"{_OPTIONS.get(field, field)}{colon}{rest}"


def module(option: str, name: str) -> ModuleType:
    """Import the module *name* that *option* was given; `python -m` looks for it in the same places.

    Raises SettingsError.
    """
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise SettingsError(f"{option} {name}: {error}") from error


def add_folder(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Give *parser* the option --dir."""
    parser.add_argument("--dir", metavar="DIR", dest="folder", type=Path, required=required, help="where backups are")


def size(text: str) -> int:
    """Return the bytes of a size such as 8GB."""
    try:
        return tuning.parse_size(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None
