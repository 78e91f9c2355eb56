"""Verifies every named query against a real server without running it."""

from .run import Fault, Interface, Listed, Report, Result, Skipped, listed, verify

__all__ = ["Fault", "Interface", "Listed", "Report", "Result", "Skipped", "listed", "verify"]
