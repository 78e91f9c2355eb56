"""How grave a finding is."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

Severity: TypeAlias = Literal["error", "warning", "note"]
"""error: data, or the service, is at risk now. warning: see to it soon. note: worth knowing."""

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
"""The gravest first."""
