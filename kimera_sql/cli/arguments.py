"""Arguments that several groups of commands take."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InvalidValue
from ..ops import tuning


def add_folder(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Give *parser* the option --dir."""
    parser.add_argument("--dir", metavar="DIR", dest="folder", type=Path, required=required, help="where backups are")


def size(text: str) -> int:
    """Return the bytes of a size such as 8GB."""
    try:
        return tuning.parse_size(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None
