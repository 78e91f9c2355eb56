"""The README's example runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_prints_its_state_as_the_nearest(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(import.*?)```", README.read_text(), re.DOTALL)[0]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    assert re.fullmatch(r"[0-9a-f-]{36} 1\.0\n", run.stdout)
    assert len(example.strip().splitlines()) <= 10
