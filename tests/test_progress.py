"""The progress bar, on a terminal that is one."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import pytest

from kimera_sql import progress
from kimera_sql.progress import Bar


@contextmanager
def terminal() -> Iterator[int]:
    """Let standard error be a terminal, and give the descriptor of what shows it."""
    screen, written = pty.openpty()
    os.set_blocking(screen, False)
    error = os.fdopen(written, "w")
    with redirect_stderr(error):
        yield screen
    for close in (error.close, lambda: os.close(screen)):
        with suppress(OSError):  # a test may have closed the screen
            close()


def test_a_bar_is_drawn_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 30)
    with terminal() as screen:
        with Bar() as bar:
            bar.draw("rows", 5_000, 10_000)
            bar.draw("rows", 5_001, 10_000)  # too soon
        assert os.read(screen, 1000).decode() == f"\r\033[Krows [{'#' * 15:30}] 5,000/10,000\r\033[K"


def test_each_item_is_counted_once_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", -1)
    with terminal() as screen:
        assert list(progress.progress("ab", 2, "letters")) == ["a", "b"]
        shown = os.read(screen, 1000).decode().split("\r\033[K")
    assert [drawing.rpartition(" ")[2] for drawing in shown] == ["", "1/2", "2/2", ""]


def test_nothing_is_drawn_where_nothing_was_done() -> None:
    with terminal() as screen:
        with Bar():
            pass
        with pytest.raises(BlockingIOError):
            os.read(screen, 1)


def test_the_work_goes_on_without_its_terminal() -> None:
    with terminal() as screen, Bar() as bar:
        os.close(screen)
        bar.draw("rows", 1, 3)
        assert not bar._shown


def test_nothing_is_drawn_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress("ab", 2, "letters")) == ["a", "b"]
    assert capsys.readouterr().err == ""
