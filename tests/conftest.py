"""What holds for every test. The fixtures are in the plug-ins fix_*.py."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = (
    "fix_servers",
    "fix_twins",
    "fix_connections",
    "fix_backups",
    "fix_clusters",
    "fix_monitoring",
    "fix_verify",
)

hypothesis.settings.register_profile(
    "kimera",
    deadline=None,
    max_examples=30,
    # A fixture is a connection whose work is rolled back; that examples share it is meant.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kimera")

# A shell makes what it runs in the background ignore SIGINT, and every process that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Servers that are made and thrown away wait for the disk most of the time, and for memory not at all.
MEMORY = Path("/dev/shm")  # noqa: S108 - it is what is meant
if (
    "TMPDIR" not in os.environ
    and os.access(MEMORY, os.W_OK)
    and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    and shutil.disk_usage(MEMORY).free > 8 * 2**30
):
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have the most slow tests, so that no process is left alone with one in the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
