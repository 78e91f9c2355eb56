"""A built wheel, installed in an empty environment, brings its queries and its schema."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import Server

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
def installed(tmp_path: Path) -> Path:
    """The bin folder of an environment that has the wheel and nothing from the checkout."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env/bin"
    subprocess.run([binaries / "pip", "install", "--quiet", wheel], check=True, capture_output=True)
    return binaries


def test_it_migrates_and_searches(installed: Path, tmp_path: Path, newest: Server) -> None:
    conninfo = newest.create()
    try:
        found = subprocess.run(
            [installed / "python", "-c", SCRIPT, conninfo, str(ROOT)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        newest.drop(conninfo)
    assert (found.stdout, found.stderr) == ("1.0\n", "")
    told = subprocess.run([installed / "kimera-sql", "--help"], capture_output=True, text=True, check=True)
    assert "init" in told.stdout
