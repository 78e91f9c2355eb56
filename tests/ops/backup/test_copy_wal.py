"""What archive_command and restore_command run: whole files or none, and never one over another."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kimera_sql.ops.backup import copy_wal

pytestmark = pytest.mark.slow

NAME = "000000010000000000000002"
PROGRAM = [sys.executable, "-I", "-S", copy_wal.__file__]


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    folder = tmp_path / "wal"
    folder.mkdir(0o700)
    return folder


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.write_bytes(os.urandom(3 * 2**20))
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_a_segment_is_archived_whole_and_for_its_owner_alone(segment: Path, wal: Path) -> None:
    ran = run("put", segment, wal / NAME)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (wal / NAME).read_bytes() == segment.read_bytes()
    assert (wal / NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in wal.iterdir()] == [NAME]


def test_the_same_again_is_success(segment: Path, wal: Path) -> None:
    assert run("put", segment, wal / NAME).returncode == 0
    before = (wal / NAME).stat()
    ran = run("put", segment, wal / NAME)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (wal / NAME).stat().st_ino == before.st_ino
    assert [path.name for path in wal.iterdir()] == [NAME]


@pytest.mark.parametrize("other", [b"", b"other", None])
def test_a_different_one_is_refused_and_the_first_stays(segment: Path, wal: Path, other: bytes | None) -> None:
    content = segment.read_bytes()[:-1] + b"?" if other is None else other
    (wal / NAME).write_bytes(content)
    ran = run("put", segment, wal / NAME)
    assert ran.returncode == 1
    assert f"{wal / NAME} is there with other content, and was left as it is" in ran.stderr
    assert (wal / NAME).read_bytes() == content
    assert [path.name for path in wal.iterdir()] == [NAME]


def test_killed_while_copying_it_leaves_no_final_file_and_the_next_run_succeeds(segment: Path, wal: Path) -> None:
    pipe = segment.parent / "pipe"
    os.mkfifo(pipe)
    content = segment.read_bytes()
    process = subprocess.Popen([*PROGRAM, "put", pipe, wal / NAME])
    with pipe.open("wb", buffering=0) as writing:
        writing.write(content[: 2**20 + 2**19])
        partial = wal / f".{NAME}.partial"
        while not (partial.exists() and partial.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (wal / NAME).exists()
    assert partial.stat().st_size
    assert run("put", segment, wal / NAME).returncode == 0
    assert (wal / NAME).read_bytes() == content
    assert [path.name for path in wal.iterdir()] == [NAME]


def test_what_cannot_be_written_in_full_leaves_nothing(segment: Path, wal: Path) -> None:
    ran = subprocess.run(
        [*PROGRAM, "put", segment, wal / NAME],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert ran.returncode == 1
    assert "File too large" in ran.stderr
    assert list(wal.iterdir()) == []


def test_two_at_once_do_not_mix(segment: Path, wal: Path) -> None:
    with (wal / f".{NAME}.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ran = run("put", segment, wal / NAME)
    assert ran.returncode == 1
    assert "another process is archiving to" in ran.stderr
    assert not (wal / NAME).exists()


def test_a_link_in_its_way_is_not_followed(segment: Path, wal: Path) -> None:
    elsewhere = segment.parent / "elsewhere"
    elsewhere.write_text("kept")
    (wal / f".{NAME}.partial").symlink_to(elsewhere)
    assert run("put", segment, wal / NAME).returncode == 1
    assert elsewhere.read_text() == "kept"


def test_a_folder_that_is_missing_is_not_made(segment: Path, wal: Path) -> None:
    ran = run("put", segment, wal / "unmounted" / NAME)
    assert ran.returncode == 1
    assert f"there is no folder {wal / 'unmounted'}; make it, or mount its disk" in ran.stderr
    assert list(wal.iterdir()) == []


def test_a_segment_that_is_missing_is_an_error(segment: Path, wal: Path) -> None:
    ran = run("put", segment.with_name("none"), wal / NAME)
    assert ran.returncode == 1
    assert "No such file or directory" in ran.stderr
    assert list(wal.iterdir()) == []


def test_get_brings_a_segment_back(segment: Path, wal: Path, tmp_path: Path) -> None:
    copy_wal.put(str(segment), str(wal / NAME))
    ran = run("get", wal / NAME, tmp_path / "RECOVERYXLOG")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == segment.read_bytes()


def test_get_takes_what_was_still_being_received(segment: Path, wal: Path, tmp_path: Path) -> None:
    (wal / f"{NAME}.partial").write_bytes(b"the first half")
    assert run("get", wal / NAME, tmp_path / "RECOVERYXLOG").returncode == 0
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == b"the first half"
    copy_wal.put(str(segment), str(wal / NAME))
    assert run("get", wal / NAME, tmp_path / "RECOVERYXLOG").returncode == 0
    assert (tmp_path / "RECOVERYXLOG").read_bytes() == segment.read_bytes()


def test_the_end_of_the_archive_is_told_from_an_archive_that_cannot_be_read(wal: Path, tmp_path: Path) -> None:
    # PostgreSQL ends recovery at exit code 1, and gives up at one above 125.
    ended = run("get", wal / NAME, tmp_path / "RECOVERYXLOG")
    assert (ended.returncode, ended.stderr) == (1, "")
    unmounted = run("get", wal / "unmounted" / NAME, tmp_path / "RECOVERYXLOG")
    assert unmounted.returncode == 200
    assert f"there is no archive {wal / 'unmounted'}" in unmounted.stderr
    (wal / NAME).mkdir()
    broken = run("get", wal / NAME, tmp_path / "RECOVERYXLOG")
    assert broken.returncode == 200
    assert "Is a directory" in broken.stderr


def test_wrong_usage_is_not_taken_for_the_end_of_the_archive() -> None:
    for arguments in ((), ("get",), ("take", "a", "b")):
        ran = run(*arguments)
        assert (ran.returncode, ran.stderr) == (200, "usage: copy_wal.py put|get SOURCE TARGET\n")


def test_it_imports_nothing_that_takes_long(wal: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-X", "importtime", *PROGRAM[1:], "get", str(wal / NAME), str(tmp_path / "x")]
    told = subprocess.run(program, capture_output=True, text=True, check=False).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "fcntl" in imported
    assert not imported & {"kimera_sql", "numpy", "psycopg", "re", "typing", "pathlib", "argparse", "shutil", "site"}
