"""Runs the command `kimera-sql` as a process."""

from __future__ import annotations

import os
import subprocess
import sys

COMMAND = [sys.executable, "-c", "import sys; from kimera_sql.cli import main; sys.exit(main())"]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without a configured database, and with *variables*; warnings are errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_", "PG"))}
    return {**kept, "PYTHONWARNINGS": "error", **variables}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, in an environment with *variables*."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(**variables), capture_output=True, text=True, check=False
    )
