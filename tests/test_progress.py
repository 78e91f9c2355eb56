"""The progress bar, on a terminal that is one."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kimera_sql import progress
from kimera_sql.progress import Bar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What shows what is written on the terminal that standard error is, by its descriptor."""
    screen, terminal = pty.openpty()
    with suppress(OSError), open(terminal, "w") as error:  # a test may have closed the screen
        monkeypatch.setattr("sys.stderr", error)
        yield screen
    with suppress(OSError):
        os.close(screen)


def test_a_bar_is_drawn_and_leaves_nothing_behind(screen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 30)
    with Bar() as bar:
        bar.draw("rows", 5_000, 10_000)
        bar.draw("rows", 5_001, 10_000)  # too soon
    assert os.read(screen, 1000).decode() == f"\r\033[Krows [{'#' * 15:30}] 5,000/10,000\r\033[K"


def test_each_item_is_counted_once_it_is_done(screen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0)
    assert list(progress.progress("ab", 2, "letters")) == ["a", "b"]
    shown = os.read(screen, 1000).decode().split("\r\033[K")
    assert [drawing.rpartition(" ")[2] for drawing in shown] == ["", "1/2", "2/2", ""]


def test_nothing_is_drawn_where_nothing_was_done(screen: int) -> None:
    with Bar():
        pass
    os.set_blocking(screen, False)
    with pytest.raises(BlockingIOError):
        os.read(screen, 1)


def test_the_work_goes_on_without_its_terminal(screen: int) -> None:
    with Bar() as bar:
        os.close(screen)
        for done in range(3):
            bar.draw("rows", done, 3)


def test_nothing_is_drawn_where_standard_error_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress("ab", 2, "letters")) == ["a", "b"]
    assert capfd.readouterr().err == ""
