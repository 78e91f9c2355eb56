"""What holds for every test. The fixtures are in the plug-ins fix_*.py."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
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
    "fix_proxy",
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

FAULTS = Path(__file__).parent / "faults"
"""The tests that do real harm: they kill, cut, stall and fill."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, and put the files with the most slow tests first.

    A process is then not left alone with a long file in the end. All of faults/ is slow.
    """
    kept = [
        item for item in items if all(map(_has, (what for mark in item.iter_markers("needs") for what in mark.args)))
    ]
    left_out = {*items} - {*kept}
    config.hook.pytest_deselected(items=list(left_out))
    for item in kept:
        if FAULTS in item.path.parents:
            item.add_marker("slow")
    slow = Counter(item.path for item in kept if item.get_closest_marker("slow"))
    items[:] = sorted(kept, key=lambda item: -slow[item.path])


def _has(what: str) -> bool:
    return os.geteuid() == 0 if what == "root" else shutil.which(what) is not None


_outcomes: defaultdict[str, set[str]] = defaultdict(set)
"""What became of each test, in all its parametrizations."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.skipped:
        _outcomes[report.nodeid.partition("[")[0]].add(report.outcome)


def _skipped_everywhere() -> list[str]:
    # A server of the user's own may lack what some tests are about.
    if "KIMERA_TEST_DATABASE_URL" in os.environ:
        return []
    return [test for test, outcomes in _outcomes.items() if outcomes == {"skipped"}]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which a test was skipped on every server: nobody would notice that it is no longer run."""
    if (
        _skipped_everywhere()
        and session.exitstatus == pytest.ExitCode.OK
        and not hasattr(session.config, "workerinput")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that were skipped everywhere."""
    for test in _skipped_everywhere():
        terminalreporter.write_line(f"SKIPPED EVERYWHERE {test}", red=True)
