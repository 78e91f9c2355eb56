"""What a file to be loaded gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of a file. total: how many. values: makes a row into its values by name, or raises InvalidValue."""

    total: int
    rows: Iterable[Any]
    values: Callable[[Any], Mapping[str, Any]]
