"""What went wrong, in the words of someone who runs a command."""

from __future__ import annotations

import sqlite3

import psycopg
from psycopg_pool import PoolTimeout

from ..errors import InvalidValue, KimeraError, SettingsError
from ..strategies import parse
from .arguments import in_options


def said(error: Exception) -> str | None:
    """Return what to say of *error*, None for one that is a fault of ours."""
    if not isinstance(error, (KimeraError, psycopg.Error, sqlite3.Error, PoolTimeout)):
        return None
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
    return f"{in_options(str(error)) if isinstance(error, InvalidValue) else error}{notes}"


def fault_of_conninfo(text: str) -> str | None:
    """Return why *text* is no conninfo, None if it is one."""
    try:
        parse(text)
    except SettingsError as error:
        return str(error)
    return None
