"""What archive_command and restore_command run: whole files or none, and never one over another."""

from __future__ import annotations

import fcntl
import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kimera_sql.ops.backup import ARCHIVE_PROGRAM, copy_wal

pytestmark = pytest.mark.slow

NAME = "000000010000000000000002"
PACKED = f"{NAME}.gz"
MARK = ".written_by_archive_command"
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


def listed(wal: Path) -> list[str]:
    return sorted(path.name for path in wal.iterdir())


def test_a_segment_is_archived_whole_and_for_its_owner_alone(segment: Path, wal: Path) -> None:
    ran = run("put", segment, wal / NAME)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert gzip.decompress((wal / PACKED).read_bytes()) == segment.read_bytes()
    assert {path.stat().st_mode & 0o777 for path in wal.iterdir()} == {0o600}
    assert listed(wal) == [MARK, PACKED]


def test_the_same_again_is_success(segment: Path, wal: Path) -> None:
    assert run("put", segment, wal / NAME).returncode == 0
    before = (wal / PACKED).stat()
    ran = run("put", segment, wal / NAME)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (wal / PACKED).stat().st_ino == before.st_ino
    assert listed(wal) == [MARK, PACKED]


@pytest.mark.parametrize("name", [NAME, PACKED])
@pytest.mark.parametrize("other", [b"", b"other", None, b"longer"])
def test_a_different_one_is_refused_and_the_first_stays(
    segment: Path, wal: Path, other: bytes | None, name: str
) -> None:
    content = segment.read_bytes()
    content = content[:-1] + b"?" if other is None else content + other if other == b"longer" else other
    stored = gzip.compress(content) if name == PACKED else content
    (wal / name).write_bytes(stored)
    ran = run("put", segment, wal / NAME)
    assert ran.returncode == 1
    assert f"{wal / name} is there with other content, and was left as it is" in ran.stderr
    assert (wal / name).read_bytes() == stored
    assert listed(wal) == [MARK, name]


def test_what_is_there_unpacked_is_not_archived_again(segment: Path, wal: Path) -> None:
    (wal / NAME).write_bytes(segment.read_bytes())
    assert run("put", segment, wal / NAME).returncode == 0
    assert listed(wal) == [MARK, NAME]


def test_what_is_no_segment_stays_as_it_is(segment: Path, wal: Path) -> None:
    for name in ("00000002.history", f"{NAME}.00000028.backup"):
        assert run("put", segment, wal / name).returncode == 0
        assert (wal / name).read_bytes() == segment.read_bytes()


def test_an_archive_of_the_receivers_is_refused(segment: Path, wal: Path) -> None:
    copy_wal.claim(str(wal), copy_wal.RECEIVER)
    ran = run("put", segment, wal / NAME)
    assert ran.returncode == 1
    assert f"{wal} is already written by kimera-sql backup receive-wal, and an archive has one writer" in ran.stderr
    assert f"remove {wal / '.written_by_receive_wal'}" in ran.stderr
    assert listed(wal) == [".written_by_receive_wal"]
    (wal / ".written_by_receive_wal").unlink()
    assert run("put", segment, wal / NAME).returncode == 0
    with pytest.raises(copy_wal.ArchiveError, match="is already written by archive_command"):
        copy_wal.claim(str(wal), copy_wal.RECEIVER)
    assert listed(wal) == [MARK, PACKED]


def test_a_received_segment_is_packed_in_its_place(segment: Path, wal: Path) -> None:
    content = segment.read_bytes()
    segment.rename(wal / NAME)
    copy_wal.pack(str(wal / NAME))
    assert listed(wal) == [PACKED]
    assert gzip.decompress((wal / PACKED).read_bytes()) == content
    # As it is left by one that was killed just before its last step
    (wal / NAME).write_bytes(content)
    copy_wal.pack(str(wal / NAME))
    assert listed(wal) == [PACKED]


@pytest.mark.parametrize("cut", [0, 10, 2**20, -1])
def test_a_packed_segment_that_is_damaged_is_not_taken_for_the_end(
    segment: Path, wal: Path, tmp_path: Path, cut: int
) -> None:
    copy_wal.put(str(segment), str(wal / NAME))
    content = (wal / PACKED).read_bytes()
    (wal / PACKED).write_bytes(content[:cut])
    ran = run("get", wal / NAME, tmp_path / "RECOVERYXLOG")
    assert ran.returncode == 200
    assert f"{wal / PACKED} is damaged: it is cut off" in ran.stderr
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    (wal / PACKED).write_bytes(changed)
    ran = run("get", wal / NAME, tmp_path / "RECOVERYXLOG")
    assert ran.returncode == 200
    assert f"{wal / PACKED} is damaged: " in ran.stderr


@pytest.mark.needs("root")
def test_check_names_the_first_file_that_cannot_be_read(segment: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = shutil.copy(copy_wal.__file__, folder)
        archive = Path(folder, "wal")
        archive.mkdir(0o755)
        copy_wal.put(str(segment), str(archive / NAME))
        command = [ARCHIVE_PROGRAM[0], "-I", "-S", program, "check", str(archive)]
        assert subprocess.run(command, check=False).returncode == 0
        ran = subprocess.run(command, capture_output=True, text=True, check=False, user="nobody", cwd="/")
        assert (ran.returncode, ran.stderr) == (
            200,
            f"kimera-sql: cannot check {archive}: {archive / PACKED}: Permission denied\n",
        )
        (archive / PACKED).chmod(0o644)
        assert subprocess.run(command, check=False, user="nobody", cwd="/").returncode == 0


def test_killed_while_copying_it_leaves_no_final_file_and_the_next_run_succeeds(segment: Path, wal: Path) -> None:
    pipe = segment.parent / "pipe"
    os.mkfifo(pipe)
    content = segment.read_bytes()
    process = subprocess.Popen([*PROGRAM, "put", pipe, wal / NAME])
    with pipe.open("wb", buffering=0) as writing:
        writing.write(content[: 2**20 + 2**19])
        partial = wal / f".{NAME}.gz.partial"
        while not (partial.exists() and partial.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (wal / PACKED).exists()
    assert partial.stat().st_size
    assert run("put", segment, wal / NAME).returncode == 0
    assert gzip.decompress((wal / PACKED).read_bytes()) == content
    assert listed(wal) == [MARK, PACKED]


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
    assert listed(wal) == [MARK]


def test_two_at_once_do_not_mix(segment: Path, wal: Path) -> None:
    with (wal / f".{NAME}.gz.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ran = run("put", segment, wal / NAME)
    assert ran.returncode == 1
    assert "another process is archiving to" in ran.stderr
    assert not (wal / PACKED).exists()


def test_a_link_in_its_way_is_not_followed(segment: Path, wal: Path) -> None:
    elsewhere = segment.parent / "elsewhere"
    elsewhere.write_text("kept")
    (wal / f".{NAME}.gz.partial").symlink_to(elsewhere)
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
    assert listed(wal) == [MARK]


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
    for arguments in ((), ("get",), ("take", "a", "b"), ("check",), ("check", "a", "b")):
        ran = run(*arguments)
        assert (ran.returncode, ran.stderr) == (200, "usage: copy_wal.py put|get SOURCE TARGET, or check ARCHIVE\n")


def test_it_imports_nothing_that_takes_long(wal: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-X", "importtime", *PROGRAM[1:], "get", str(wal / NAME), str(tmp_path / "x")]
    told = subprocess.run(program, capture_output=True, text=True, check=False).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "fcntl" in imported
    assert not imported & {"kimera_sql", "numpy", "psycopg", "re", "typing", "pathlib", "argparse", "shutil", "site"}
