"""Backups, restores and point-in-time recovery."""

from .dumps import Origin

__all__ = ["Origin"]
