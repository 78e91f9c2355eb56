"""Temporary files and folders: those of the living stay, those of the dead go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kimera_sql.leftovers import partial_file, temporary_folder

_HOLDER = """
import sys
from pathlib import Path
from kimera_sql.leftovers import partial_file, temporary_folder
with temporary_folder() as folder, partial_file(Path(sys.argv[1])) as partial:
    (folder / "inside").touch()
    print(folder, partial, flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> tuple[subprocess.Popen[str], Path, Path]:
    """A process that holds a temporary folder, and a file that is to become *path*."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder, partial = map(Path, process.stdout.readline().split())
    return process, folder, partial


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_those_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    process, folder, partial = holder(tmp_path / "theirs")
    with process:
        with temporary_folder() as own, partial_file(tmp_path / "ours") as other:
            assert folder.is_dir()
            assert partial.is_file()
        assert not own.exists()
        assert not other.exists()
        process.kill()
        process.communicate()
        assert (folder / "inside").exists()
        assert partial.exists()
        with temporary_folder(), partial_file(tmp_path / "ours"):
            assert not folder.exists()
            assert not partial.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


def test_whoever_removes_leftovers_may_take_one_that_is_not_locked_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then another one is made."""
    made: list[str] = []

    def taken_once(path: str) -> str:
        made.append(path)
        if len(made) == 1:
            os.rmdir(path)
        return path

    real = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **named: taken_once(real(**named)))
    with temporary_folder() as folder:
        assert folder.is_dir()
    assert len(made) == 2


def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / ".link.kimera_partial").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".pipe.kimera_partial")
    with partial_file(tmp_path / "ours"):
        assert (tmp_path / ".link.kimera_partial").is_symlink()
        assert (tmp_path / "precious").exists()


def test_modes_are_closed_from_the_first_byte(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with temporary_folder() as folder, partial_file(tmp_path / "ours") as partial:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert partial.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
