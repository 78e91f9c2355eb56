"""The arithmetic of WAL, and gaps in an archive."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimera_sql.errors import BackupError
from kimera_sql.ops.backup import wal
from kimera_sql.ops.backup.segments import missing_segment

pytestmark = pytest.mark.slow

MB = 2**20
SIZES = st.sampled_from([2**power for power in range(20, 31)])


@given(timeline=st.integers(1, 2**32 - 1), number=st.integers(0, 2**32), size=SIZES)
def test_a_segments_name_has_its_timeline_and_its_number(timeline: int, number: int, size: int) -> None:
    name = wal.segment_name(timeline, number, size)
    assert wal.is_segment(name)
    assert (wal.segment_timeline(name), wal.segment_number(name, size)) == (timeline, number)
    # As their names are sorted, so are they.
    assert name < wal.segment_name(timeline, number + 1, size)


def test_names_and_positions_are_postgresqls() -> None:
    assert wal.segment_name(1, 3, 16 * MB) == "000000010000000000000003"
    assert wal.segment_name(2, 256, 16 * MB) == "000000020000000100000000"
    assert wal.segment_name(1, 4095, MB) == "000000010000000000000FFF"
    assert wal.position("0/3000148") == 0x3000148
    assert wal.position("A/b") == 10 * 2**32 + 11
    assert [wal.is_lsn(text) for text in ("0/3000148", "", "3000148", "0/", "123456789/0")] == [True, *[False] * 4]
    for name in ("", "00000002.history", "000000010000000000000003.partial", "00000001000000000000000x"):
        assert not wal.is_segment(name)


@pytest.mark.parametrize("size", [0, 4096, 2**20 - 1, 3 * 2**20, 2**31])
def test_a_size_that_no_segment_has(size: int) -> None:
    assert not wal.is_segment_size(size)


def test_timelines_begin_where_their_history_says() -> None:
    history = "# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t1/0\tbefore 2026-01-01 00:00:00+00\n"
    assert wal.timeline_starts(history, 5) == {1: 0, 2: 0x3000148, 5: 2**32}
    assert wal.timeline_starts("", 1) == {1: 0}


def test_a_gap_is_the_first_number_that_is_missing() -> None:
    assert wal.first_gap({3, 4, 5}, 3, 5) is None
    assert wal.first_gap({3, 5, 7}, 3, 7) == 4
    assert wal.first_gap(set(), 3, 3) == 3
    assert wal.first_gap(set(), 3, 2) is None


def put(archive: Path, *names: str, size: int = MB) -> None:
    for name in names:
        (archive / name).touch()
        os.truncate(archive / name, size)


def base(folder: Path, first: str) -> Path:
    """What there has to be of a base backup that begins in the segment *first*."""
    (folder / "base").mkdir()
    (folder / "base/backup_label").write_text(f"START WAL LOCATION: 0/0 (file {first})\n")
    return folder / "base"


def test_what_an_archive_lacks_of_a_timeline_is_named(tmp_path: Path) -> None:
    first = "000000010000000000000FFE"
    made = base(tmp_path, first)
    assert missing_segment(tmp_path, made) is None
    put(tmp_path, first, "000000010000000000000FFF", "000000010000000100000000")
    assert missing_segment(tmp_path, made) is None
    put(tmp_path, "000000010000000100000002", "000000020000000100000009", "00000002.history")
    assert missing_segment(tmp_path, made) == "000000010000000100000001"
    (tmp_path / "000000010000000000000FFF").unlink()
    assert missing_segment(tmp_path, made) == "000000010000000000000FFF"


def test_packed_segments_are_segments_and_one_that_is_being_received_is_none_yet(tmp_path: Path) -> None:
    names = [f"{number:024X}" for number in range(3, 7)]
    made = base(tmp_path, names[0])
    for name in names[::2]:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(MB)))
    assert missing_segment(tmp_path, made) == names[1]
    put(tmp_path, names[1], f"{names[3]}.partial", f".{names[1]}.gz.partial")
    assert missing_segment(tmp_path, made) is None
    (tmp_path / f"{names[0]}.gz").unlink()
    assert missing_segment(tmp_path, made) == names[0]
    assert [wal.segment_in(name) for name in (names[0], f"{names[0]}.gz", f"{names[0]}.partial")] == names[:1] * 3
    for name in ("00000002.history", f"{names[0]}.00000028.backup", f".{names[0]}.gz.partial", f"{names[0]}.lz4"):
        assert wal.segment_in(name) is None


def test_a_segment_of_a_size_that_none_has_is_damaged(tmp_path: Path) -> None:
    name = "000000010000000000000003"
    made = base(tmp_path, name)
    put(tmp_path, name, size=0)
    with pytest.raises(BackupError, match=f"{name} is damaged: it has 0 bytes"):
        missing_segment(tmp_path, made)
