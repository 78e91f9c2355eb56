"""docs/reliability.md names the test of each promise, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
NAMES = re.findall(r"`(?:\S+: )?test_(\w+)(\.\.\.)?`", PAGE)
SHORT = [
    name
    for row in re.findall(r"\| [BOF] (`.*) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)(\.\.\.)?`", row)
]
FILES = {path.relative_to(Path(__file__).parent).as_posix(): path for path in Path(__file__).parent.rglob("*.py")}
TESTS = {name for path in FILES.values() for name in re.findall(r"^def test_(\w+)\(", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize(("name", "cut"), [*NAMES, *SHORT])
def test_a_test_that_is_named_is_there(name: str, cut: str) -> None:
    assert any(test.startswith(name) for test in TESTS) if cut else name in TESTS


@pytest.mark.parametrize("name", sorted({*re.findall(r"`(?:tests/)?([\w/]+\.py)(?:`|:)", PAGE)}))
def test_a_file_that_is_named_is_there(name: str) -> None:
    assert name in FILES


def test_names_are_found() -> None:
    assert len(NAMES) > 40
    assert len(SHORT) > 15
