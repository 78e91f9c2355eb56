"""The schedule: systemd units, and lines for cron, that make backups, prune and prove them, and do the upkeep."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...errors import InvalidValue
from . import copy_wal, layout, tools
from .files import reported

_SERVICES: Final = "/etc/kimera/pg_service.conf"
"""libpq's service file. A password in it stands as it is: no shell and no systemd takes it apart."""

_HEAD: Final = f"""\
# {_SERVICES} belongs to {{user}} and has mode 0600. A password stands behind its = as it is, unquoted.
[kimera_backup]
host=localhost
dbname=kimera_swm
user=kimera_nightly
password=
[kimera_owner]
host=localhost
dbname=kimera_swm
user=kimera_deploy
password=

"""

_FAILED: Final = """\
# /etc/systemd/system/kimera-failed@.service: make it say so where you will see it
[Unit]
Description=Report that %i failed

[Service]
Type=oneshot
ExecStart=/usr/bin/logger -p daemon.alert "%i failed: see journalctl -u %i"

"""

_USER: Final = re.compile(r"[^\W\d][\w.@-]*\$?")
"""The names of users that are one word to systemd and to cron."""

_HARDENING: Final = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""


def daily_schedule(
    folder: Path, *, command: str = "kimera-sql", os_user: str | None = None, receive: bool = False
) -> str:
    """Return systemd units, and the same as lines for cron: backups and upkeep daily, a drill weekly, 30 days kept.

    *command* is the program kimera-sql. *os_user* is whom all of it runs as: by default the owner of *folder*,
    postgres where that is root or not there. With *receive* there is a service that receives WAL, for an archive that
    the server does not write into itself. A backup that fails ends the run before anything is pruned. Raises
    InvalidValue, and BackupError for *receive* where archive_command writes into the archive.
    """
    where = str(folder.absolute())
    if not (where.isprintable() and command.isprintable()):
        raise InvalidValue(f"folder: control characters cannot stand in a schedule: {where!r}")
    user = os_user or _owner(folder)
    if not _USER.fullmatch(user):
        raise InvalidValue(f"os_user: {user!r} cannot stand in a schedule")
    if re.search(r"\\[\\%]", where + command):
        raise InvalidValue(f"folder: what cron makes of a backslash before another or before % varies: {where!r}")
    daily = [[command, "backup", step, "--dir", where] for step in ("dump", "base", "prune")]
    daily[-1] += ["--keep-days", "30"]
    drill = [[command, "backup", "drill", "--dir", where]]
    upkeep = [[command, "maintain", step] for step in ("retrain", "vacuum")]
    units = [
        _job(
            "backup",
            "Backups of the Kimera database",
            "*-*-* 01:00:00 UTC",
            daily,
            user,
            where,
            service="kimera_backup",
        ),
        _job("drill", "Proof that the Kimera database can be restored", "Sun *-*-* 03:00:00 UTC", drill, user, where),
        _job("upkeep", "Upkeep of the Kimera database", "*-*-* 05:00:00 UTC", upkeep, user, service="kimera_owner"),
    ]
    enabled = "kimera-backup.timer kimera-drill.timer kimera-upkeep.timer"
    if receive:
        archive = layout.wal_folder(folder)
        with reported(archive):
            copy_wal.refuse_other(str(archive.absolute()), copy_wal.RECEIVER)
        units.append(_receiver([command, "backup", "receive-wal", "--dir", where], user, where))
        enabled += " kimera-wal.service"
    return f"""\
{_HEAD.format(user=user)}{"".join(units)}{_FAILED}# systemctl daemon-reload && systemctl enable --now {enabled}

# Or as /etc/cron.d/kimera, with the machine's clock in UTC{" (systemd alone keeps the receiver running)" * receive}:
{_cron("0 1 * * *", user, daily, "kimera_backup")}
{_cron("0 3 * * 0", user, drill)}
{_cron("0 5 * * *", user, upkeep, "kimera_owner")}
"""


def _owner(folder: Path) -> str:
    """Return whose *folder* is, postgres where that is root's or not there."""
    with reported(folder):
        owner = folder.stat().st_uid if folder.exists() else 0
    return tools.user_name(owner) if owner else "postgres"


def _job(
    name: str,
    description: str,
    when: str,
    steps: Sequence[Sequence[str]],
    user: str,
    folder: str | None = None,
    *,
    service: str | None = None,
) -> str:
    return f"""\
# /etc/systemd/system/kimera-{name}.service
{_unit(description)}
[Service]
Type=oneshot
{_surroundings(user, folder, service)}{"".join(_start(step) for step in steps)}
# /etc/systemd/system/kimera-{name}.timer
[Unit]
Description={description}

[Timer]
OnCalendar={when}
Persistent=true

[Install]
WantedBy=timers.target

"""


def _receiver(command: Sequence[str], user: str, folder: str) -> str:
    return f"""\
# /etc/systemd/system/kimera-wal.service
{_unit("Archive of the Kimera database's WAL")}
[Service]
Restart=always
RestartSec=10
{_surroundings(user, folder, "kimera_backup")}{_start(command)}
[Install]
WantedBy=multi-user.target

"""


def _unit(description: str) -> str:
    return f"""\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
OnFailure=kimera-failed@%n.service
"""


def _surroundings(user: str, folder: str | None, service: str | None) -> str:
    lines = [f"User={user}\n"]
    if service is not None:
        lines.append(f"Environment=PGSERVICEFILE={_SERVICES} PGSERVICE={service}\n")
    if folder is not None:
        lines.append(f"ReadWritePaths={_systemd_word(folder)}\n")
    return "".join(lines) + _HARDENING


def _start(words: Sequence[str]) -> str:
    return f"ExecStart={' '.join(_systemd_word(word).replace('$', '$$') for word in words)}\n"


def _systemd_word(text: str) -> str:
    """Return *text* as a word of a unit, in which systemd replaces %, and takes backslashes for escapes."""
    escaped = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return escaped if escaped == text and shlex.quote(text) == text else f'"{escaped}"'


def _cron(when: str, user: str, steps: Sequence[Sequence[str]], service: str | None = None) -> str:
    """Return a line of /etc/cron.d, in which cron takes % for a line break."""
    command = " && ".join(map(shlex.join, steps))
    if service is not None:
        command = f"export PGSERVICEFILE={_SERVICES} PGSERVICE={service}; {command}"
    return f"{when} {user} {command}".replace("%", "\\%")
