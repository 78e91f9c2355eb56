"""The fixture `kimera_verify`: verifies a folder of queries from a test of yours."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest


class Verify(Protocol):
    """What the fixture gives; see kimera_verify."""

    def __call__(
        self,
        folder: Path | str,
        records: ModuleType | str | None = None,
        *,
        conninfo: str | None = None,
        stub: Path | str | None = None,
        async_stub: Path | str | None = None,
    ) -> None: ...


@pytest.fixture
def kimera_verify() -> Verify:
    """A function that fails the test with all that is wrong with the queries of a folder; see verify.verify_queries.

    They are prepared on the database of *conninfo*, and without one compared with the folder's snapshot.
    """
    # Not at the top: this module is imported by every run of pytest where kimera_sql is installed.
    import psycopg

    from .pools import add_adapters
    from .verify import verify_queries

    def check(
        folder: Path | str,
        records: ModuleType | str | None = None,
        *,
        conninfo: str | None = None,
        stub: Path | str | None = None,
        async_stub: Path | str | None = None,
    ) -> None:
        if conninfo is None:
            report = verify_queries(None, folder, records, stub=stub, async_stub=async_stub)
        else:
            with psycopg.connect(conninfo) as conn:
                add_adapters(conn)
                report = verify_queries(conn, folder, records, stub=stub, async_stub=async_stub)
        if report.faults:
            pytest.fail("\n".join(map(str, report.faults)), pytrace=False)

    return check
