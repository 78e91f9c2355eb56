"""The schedule: systemd units, and a line for cron, that make backups and prune them."""

from __future__ import annotations

import shlex
from pathlib import Path


def daily_schedule(folder: Path, *, command: str = "kimera-sql") -> str:
    """Return systemd units, and the same as lines for cron: backups daily at 01:00 UTC, WAL always, 30 days kept.

    *command* is how kimera-sql is called. A backup that fails ends the run before anything is pruned.
    """
    where = shlex.quote(str(folder.absolute()))
    daily = [f"{command} backup {step} --dir {where}" for step in ("dump", "base", "prune --keep-days 30")]
    receive = f"{command} backup receive-wal --dir {where}"
    steps = "\n".join(f"ExecStart={_unit(step)}" for step in daily)
    return f"""\
# /etc/systemd/system/kimera-backup.service
[Unit]
Description=Backups of the Kimera database
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
# KIMERA_DB_HOST and its companions, for a role that may read everything and has REPLICATION; mode 0600
EnvironmentFile=/etc/kimera-backup.env
{steps}

# /etc/systemd/system/kimera-backup.timer
[Unit]
Description=Backups of the Kimera database, daily at 01:00 UTC

[Timer]
OnCalendar=*-*-* 01:00:00 UTC
Persistent=true

[Install]
WantedBy=timers.target

# /etc/systemd/system/kimera-wal.service, unless the server archives its WAL itself (backup archive-command)
[Unit]
Description=Archive of the Kimera database's WAL
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile=/etc/kimera-backup.env
ExecStart={_unit(receive)}
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target

# systemctl daemon-reload && systemctl enable --now kimera-backup.timer kimera-wal.service

# Or in /etc/crontab, with the machine's clock in UTC:
0 1 * * * root set -a; . /etc/kimera-backup.env && {_cron(" && ".join(daily))}
"""


def _unit(command: str) -> str:
    return command.replace("%", "%%").replace("$", "$$")


def _cron(command: str) -> str:
    return command.replace("%", "\\%")
