"""Verifies every named query against a real server without running it: verify_queries."""

from .interfaces import Interface, Listed, Report, Result, Skipped
from .run import listed, verify_queries
from .text import Fault

__all__ = ["Fault", "Interface", "Listed", "Report", "Result", "Skipped", "listed", "verify_queries"]
