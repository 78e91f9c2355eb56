"""Versions as servers and extensions write them."""

from __future__ import annotations

import re


def version(text: str) -> tuple[int, ...]:
    """Return the version "0.8.2" as (0, 8, 2), which can be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", text))
