"""A built wheel, installed in an empty environment, brings its queries and its schema."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest
from fix_servers import Server

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
import kimera_sql
from kimera_sql import geoids, migrate, open_pool
assert not kimera_sql.__file__.startswith(sys.argv[2]), kimera_sql.__file__
with open_pool(sys.argv[1]) as pool, pool.connection() as conn:
    migrate(conn)
    new = geoids.NewGeoid(state_vector=[1.0] * 1024, entropy=0, coherence_factor=0, energy_level=0)
    geoids.insert(conn, new)
    print(geoids.similar(conn, [1.0] * 1024)[0].similarity)
"""


@pytest.fixture
def python(tmp_path: Path) -> list[str | Path]:
    """The Python of an environment that has the wheel, and nothing from the checkout."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    # This environment's pip installs into the other one, which needs none of its own.
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", wheel], check=True, capture_output=True)
    return [python, "-I"]


@pytest.mark.slow
def test_it_migrates_and_searches(python: list[str | Path], tmp_path: Path, newest: Server) -> None:
    conninfo = newest.create()
    try:
        found = subprocess.run(
            [*python, "-c", SCRIPT, conninfo, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        newest.drop(conninfo)
    assert (found.stdout, found.stderr) == ("1.0\n", "")
    command = tmp_path / "env/bin/kimera-sql"
    told = subprocess.run([*python, command, "--help"], capture_output=True, text=True, check=True)
    assert "init" in told.stdout
