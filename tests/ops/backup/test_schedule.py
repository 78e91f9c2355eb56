"""The schedule that is printed does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import environment, run
from fix_clusters import NAMES, Cluster, cluster

from kimera_sql.errors import BackupError, InvalidValue
from kimera_sql.ops import backup
from kimera_sql.ops.backup import copy_wal

ODD = """it's 100% "here" $HOME \\x #;&"""

PASSWORD = """$HOME `id` # 100% 'single' "double" \\ back"""


def units(printed: str) -> dict[str, str]:
    """The units of a schedule, by their names."""
    return dict(re.findall(r"^# /etc/systemd/system/(\S+?)(?:: .*)?\n(.*?)(?=^# )", printed, re.MULTILINE | re.DOTALL))


def cron_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if re.match("0 [0-9] ", line)]


def as_cron_runs(line: str) -> str:
    """What cron gives to sh of a line of /etc/cron.d: an unescaped % would end it."""
    command = line.split(None, 6)[6]
    assert not re.search(r"(?<!\\)%", command)
    return command.replace("\\%", "%")


def test_the_schedule_is_daily_at_one_and_quotes_its_folder(tmp_path: Path) -> None:
    printed = backup.daily_schedule(tmp_path / "it's 100% here", command="kimera-sql")
    assert "OnCalendar=*-*-* 01:00:00 UTC\n" in printed
    assert "\n0 1 * * * postgres " in printed
    assert "100\\% here" in printed
    assert "100%% here" in printed
    assert printed.count("--keep-days 30") == 2
    line = as_cron_runs(cron_lines(printed)[0])
    said = subprocess.run(
        ["sh", "-c", line.replace("kimera-sql", "printf '%s\\n'")], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines().count(str(tmp_path / "it's 100% here")) == 3
    failing = line.replace("kimera-sql", "! echo")
    said = subprocess.run(["sh", "-c", failing], capture_output=True, text=True, check=False).stdout
    assert said.startswith("backup dump ")
    assert said.count("\n") == 1
    assert run("backup", "schedule", "--dir", str(tmp_path)).stdout.startswith("# /etc/kimera/pg_service.conf ")


def test_every_unit_runs_as_a_user_and_reports_that_it_failed(tmp_path: Path) -> None:
    found = units(backup.daily_schedule(tmp_path, os_user="somebody", receive=True))
    services = [name for name in found if name.endswith(".service") and "@" not in name]
    assert services == ["kimera-backup.service", "kimera-drill.service", "kimera-upkeep.service", "kimera-wal.service"]
    for name in services:
        assert "\nUser=somebody\n" in found[name]
        assert "\nOnFailure=kimera-failed@%n.service\n" in found[name]
        assert "\nNoNewPrivileges=yes\n" in found[name]
        assert name == "kimera-wal.service" or name.replace(".service", ".timer") in found
    assert "OnCalendar=Sun *-*-* 03:00:00 UTC\n" in found["kimera-drill.timer"]
    assert "OnCalendar=*-*-* 05:00:00 UTC\n" in found["kimera-upkeep.timer"]
    assert "EnvironmentFile" not in "".join(found.values())


@pytest.mark.needs("root")
def test_they_run_as_the_folders_owner(tmp_path: Path) -> None:
    assert "\nUser=postgres\n" in backup.daily_schedule(tmp_path / "not yet there")
    os.chown(tmp_path, 65534, 65534)
    assert "\nUser=nobody\n" in backup.daily_schedule(tmp_path)
    printed = run("backup", "schedule", "--dir", str(tmp_path), "--os-user", "somebody").stdout
    assert printed.count("\nUser=somebody\n") == len(cron_lines(printed)) == printed.count(" * * * somebody ") + 1


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_the_units_and_finds_them_safe(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    printed = backup.daily_schedule(folder, command="/bin/true", receive=True)
    for name, text in units(printed).items():
        (tmp_path / name).write_text(text)
    services = sorted(tmp_path.glob("kimera-[!f]*.service"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", *services, *tmp_path.glob("*.timer")], capture_output=True, text=True, check=False
    )
    # What it makes of its own machine's units is not our business.
    assert [line for line in checked.stderr.splitlines() if "kimera-" in line and "masked" not in line] == []
    for path in services:
        told = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", path], capture_output=True, text=True, check=True
        ).stdout
        level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
        assert level is not None
        assert float(level[1]) < 5
    for when in re.findall("OnCalendar=(.*)", printed):
        subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, check=True)


def test_there_is_a_receiver_only_where_it_is_asked_for(tmp_path: Path) -> None:
    printed = run("backup", "schedule", "--dir", str(tmp_path)).stdout
    assert "receive-wal" not in printed
    assert "kimera-wal" not in printed
    printed = run("backup", "schedule", "--dir", str(tmp_path), "--receive-wal").stdout
    assert f"backup receive-wal --dir {tmp_path}\n" in units(printed)["kimera-wal.service"]
    assert "systemctl enable --now" in printed.replace("daemon-reload && ", "")
    assert printed.count("kimera-wal.service") == 2


def test_a_receiver_for_an_archive_that_the_server_writes_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    copy_wal.claim(str(tmp_path / "wal"), copy_wal.ARCHIVE_COMMAND)
    with pytest.raises(BackupError, match="is already written by archive_command, and an archive has one writer"):
        backup.daily_schedule(tmp_path, receive=True)
    ran = run("backup", "schedule", "--dir", str(tmp_path), "--receive-wal")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert run("backup", "schedule", "--dir", str(tmp_path)).returncode == 0


def test_a_folder_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="folder: control characters"):
        backup.daily_schedule(tmp_path / "a\nb")


@pytest.mark.parametrize("name", ["two \\\\ of them", "100\\%"])
def test_a_folder_that_cron_would_take_apart_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidValue, match="folder: what cron makes of a backslash"):
        backup.daily_schedule(tmp_path / name)


@pytest.mark.parametrize("user", ["a\nExecStart=/bin/false", "a b", "%u", "-a", "a:b"])
def test_a_user_that_is_more_than_a_name_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(InvalidValue, match="os_user: "):
        backup.daily_schedule(tmp_path, os_user=user)


@pytest.fixture(scope="module", params=NAMES)
def archiving(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(request.param) as made:
        with made.connect() as conn:
            conn.execute(f"CREATE ROLE secretive LOGIN REPLICATION PASSWORD $secret${PASSWORD}$secret$".encode())
            conn.execute("GRANT pg_read_all_data TO secretive")
        yield made


@pytest.mark.slow
@pytest.mark.ends
def test_crons_line_makes_backups_with_a_password_of_every_kind_of_character(
    archiving: Cluster, tmp_path: Path
) -> None:
    """As the docs' least role, from the service file that the schedule describes."""
    # pg_verifybackup gives its folder to a shell in double quotes.
    folder, services, program = tmp_path / "it's 100% here #;&", tmp_path / "pg_service.conf", tmp_path / "kimera-sql"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom kimera_sql.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    services.touch(0o600)
    services.write_text(
        f"[kimera_backup]\nhost={archiving.folder / 'data'}\ndbname=postgres\nuser=secretive\npassword={PASSWORD}\n"
    )
    line = cron_lines(backup.daily_schedule(folder, command=str(program)))[0]
    assert PASSWORD not in line
    command = as_cron_runs(line).replace("/etc/kimera/pg_service.conf", str(services))
    ran = subprocess.run(["sh", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    assert ran.returncode == 0
    assert {one.kind for one in backup.list_backups(folder)} == {"base", "dump"}
