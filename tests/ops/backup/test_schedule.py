"""The schedule that is printed does what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from commands import run

from kimera_sql.ops import backup


def test_the_schedule_is_daily_at_one_and_quotes_its_folder(tmp_path: Path) -> None:
    printed = backup.daily_schedule(tmp_path / "it's 100% here")
    assert "OnCalendar=*-*-* 01:00:00 UTC\n" in printed
    assert "\n0 1 * * * root " in printed
    assert "100\\% here" in printed
    assert "100%% here" in printed
    assert printed.count("--keep-days 30") == 2
    line = next(line for line in printed.splitlines() if line.startswith("0 1")).replace("\\%", "%")
    script = line.partition("&& ")[2].replace("kimera-sql", "printf '%s\\n'")
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines().count(str(tmp_path / "it's 100% here")) == 3
    failing = line.partition("&& ")[2].replace("kimera-sql", "! echo")
    said = subprocess.run(["sh", "-c", failing], capture_output=True, text=True, check=False).stdout
    assert said.startswith("backup dump ")
    assert said.count("\n") == 1
    assert run("backup", "schedule", "--dir", str(tmp_path)).stdout.startswith("# /etc/systemd/system/")
