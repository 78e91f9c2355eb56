"""The demo, on a few modules of the standard library instead of all."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from commands import environment

from kimera_sql.demo import paragraphs

LIBRARY = Path(sysconfig.get_path("stdlib"))
MODULES = ("argparse", "bz2", "datetime", "gzip", "lzma", "shlex", "shutil", "tarfile", "threading", "zipfile")
QUERY = "compress and decompress data with gzip"

SCRIPT = """
import sys
from pathlib import Path
from kimera_sql import demo
from kimera_sql.cli import main
folder = Path(sys.argv.pop(1))
demo.paragraphs = lambda read=demo.paragraphs: read(folder)
sys.exit(main())
"""
DEMO = [sys.executable, "-c", SCRIPT]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in MODULES:
        (tmp_path / f"{name}.py").symlink_to(LIBRARY / f"{name}.py")
    return tmp_path


def run(library: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo on an embedded server in *folder*."""
    return subprocess.run(
        [*DEMO, str(library), "--embedded", str(folder), "demo", "--query", QUERY],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_demo_finds_what_is_asked_for(library: Path, open_folder: Path) -> None:
    ran = run(library, open_folder / "data")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"? {QUERY}" in ran.stdout
    assert "gzip." in ran.stdout.partition("? compress")[2].partition("reading path")[0]
    assert ran.stdout.partition("reading path")[2].count("entropy") == 9
    again = run(library, open_folder / "data")
    assert again.returncode == 0
    assert "loaded" not in again.stdout


@pytest.mark.slow
def test_the_whole_standard_library_is_read() -> None:
    texts = [paragraph.text for paragraph in paragraphs()]
    assert len(texts) == len(set(texts)) > 5000
