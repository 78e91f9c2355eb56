"""Parse the versions of servers and extensions."""

from __future__ import annotations

import re


def version(text: str) -> tuple[int, ...]:
    """Return a version such as "0.8.2" as a tuple such as (0, 8, 2), for comparisons."""
    return tuple(int(number) for number in re.findall(r"\d+", text))
