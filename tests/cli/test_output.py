"""What commands print for people."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kimera_sql.cli.output import number_text, print_records, size_text, time_text


@dataclass
class Row:
    pid: int
    blocker_pid: int | None
    rows: int
    size_bytes: int
    size: int
    ratio: float


def test_pids_can_be_copied_and_sizes_have_units(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([Row(2059, 1234567, 2059, 8192, 2059, 0.5), Row(1, None, 1, 1, 1, 2)], as_json=False, empty="")
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["2059", "1234567", "2,059", "8.0", "kB", "2.0", "kB", "0.500"],
        ["1", "-", "1", "1", "bytes", "1", "bytes", "2"],
    ]
    print_records([Row(2059, 1, 2, 8192, 4, 5)], as_json=True, empty="")
    assert '"size_bytes": 8192' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 kB"),
        (2**20 - 1, "1,024.0 kB"),
        (2**20, "1.0 MB"),
        (int(13.4 * 2**20), "13.4 MB"),
        (3 * 2**40, "3.0 TB"),
        (3 * 2**50, "3,072.0 TB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.00013, "0.13 ms"), (1.5, "1,500 ms"), (2, "2 s"), (119, "119 s"), (150, "2.5 min"), (7200, "2 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
    assert time_text(86400 * 1234) == "1,234 days"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.0123, "0.012"), (9.94, "9.9"), (9.96, "10"), (12.4, "12"), (1234567.8, "1,234,568")],
)
def test_numbers(number: float, text: str) -> None:
    assert number_text(number) == text
