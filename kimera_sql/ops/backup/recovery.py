"""Point-in-time recovery: a base backup and the archive of WAL become a new server as it was at a moment."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ... import checks
from ...errors import BackupError, InvalidValue
from ...progress import Bar
from ...supervisor import LONGEST
from . import tools
from .archiving import ARCHIVE_PROGRAM, restore_command
from .base_backups import BaseBackup, describe_base, verify_base
from .clone import Clone, is_free
from .configuration import debian_commands, read_configuration
from .files import reported
from .segments import Segments, find_segments
from .wal import is_lsn, position


@dataclass(frozen=True, slots=True)
class Target:
    """Where recovery stops: at one of these, or at the end of the archive where all are None.

    time: aware; the last moment whose commits are kept. name: of pg_create_restore_point. lsn: such as 0/3000148.
    xid: as pg_current_xact_id() counts. The transaction at the target itself is kept. Raises InvalidValue.
    """

    time: datetime | None = None
    name: str | None = None
    lsn: str | None = None
    xid: int | None = None

    def __post_init__(self) -> None:
        given = [field for field in self.__slots__ if getattr(self, field) is not None]
        if len(given) > 1:
            raise InvalidValue(f"target: give one of time, name, lsn and xid, not {' and '.join(given)}")
        if self.time is not None and checks.moment("time", self.time) > datetime.now(UTC):
            raise InvalidValue(f"time: {self.time.isoformat()} is in the future")
        if self.name is not None and not 0 < len(checks.text("name", self.name).encode()) < 64:
            raise InvalidValue(f"name: expected a restore point's name of 1 to 63 bytes, got {self.name!r}")
        if self.lsn is not None and not is_lsn(checks.text("lsn", self.lsn)):
            raise InvalidValue(f"lsn: expected a position such as 0/3000148, got {self.lsn!r}")
        if self.xid is not None:
            checks.integer("xid", self.xid, least=3, most=2**63 - 1)

    def __str__(self) -> str:
        if self.time is not None:
            return f"the time {_shown(self.time)}"
        if self.name is not None:
            return f"the restore point {self.name}"
        if self.lsn is not None:
            return f"the position {self.lsn}"
        if self.xid is not None:
            return f"the transaction {self.xid}"
        return "the end of the archive"

    def settings(self) -> dict[str, str]:
        """Return the server's settings that say so, those of other targets made empty."""
        targets = {
            "recovery_target": "",
            "recovery_target_time": _shown(self.time) if self.time is not None else "",
            "recovery_target_name": self.name or "",
            "recovery_target_lsn": self.lsn or "",
            "recovery_target_xid": str(self.xid or ""),
        }
        return {
            # The server refuses another one after the one that is set, even an empty one.
            **dict(sorted(targets.items(), key=lambda item: item[1] != "")),
            "recovery_target_inclusive": "on",
            "recovery_target_timeline": "latest",
            "recovery_target_action": "promote",
        }


@dataclass(frozen=True, slots=True)
class Recovered:
    """A server that was recovered. running: it listens on a socket in data_dir. segments: of WAL that were replayed.

    last_commit: of the last transaction that is in it, None where nothing was committed since the backup. lsn: of the
    last record that was replayed. stopped: in the server's words, "" at the end of the archive. timeline: the new one.
    notes: what its configuration lacks of the original's, a sentence each. commands: what makes it a cluster of
    Debian's, where the original was one.
    """

    data_dir: Path
    base: Path
    last_commit: datetime | None
    lsn: str
    stopped: str
    timeline: int
    segments: int
    running: bool
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def recover(
    base: Path,
    archive: Path,
    data_dir: Path,
    target: Target,
    *,
    os_user: str | None = None,
    keep_running: bool = False,
) -> Recovered:
    """Recover the base backup *base* with the WAL in *archive* to *target*, into the new folder *data_dir*.

    The base backup is verified first, and the archive must have every segment that is needed. *data_dir* is not there
    yet, or is empty. A server replays the WAL there, with nobody connected, becomes one of its own on a new timeline,
    and is stopped, unless *keep_running*: then it listens on a socket in *data_dir* alone. It does not archive.
    *os_user* is whom the server runs as where this is root: by default the archive's owner. Raises BackupError, and
    leaves *data_dir* as it was, for what is damaged or missing and for a target outside of what can be recovered.
    """
    data = data_dir.absolute()
    user = os_user or _default_user(archive)
    _check_places(base, archive, data)
    _check_user(user)
    made = describe_base(base)
    clone = Clone(data, tools.find("pg_ctl", made.major * 10000, exact=True), user)
    verify_base(base, archive=archive)
    copied = read_configuration(base)
    with reported(archive):
        available = find_segments(made, archive)
    _check_target(target, made, available)
    _check_archive(available, user)
    with reported(data), clone.claimed():
        notes = clone.copy(made, copied)
        recovered = _replay(clone, made, available, target)
    if keep_running:
        try:
            clone.start()
        except BackupError as error:
            error.add_note(f"{data} is recovered all the same: start it like any other server")
            raise
    return replace(
        recovered, running=keep_running, notes=tuple(notes), commands=debian_commands(copied, made.major, data)
    )


def _check_places(base: Path, archive: Path, data: Path) -> None:
    with reported(data):
        for folder in (base, archive):
            if not folder.is_dir():
                raise BackupError(f"there is no folder {folder}")
        if not data.parent.is_dir():
            raise BackupError(f"there is no folder {data.parent} to make {data.name} in")
        if not is_free(data):
            raise BackupError(f"{data} is not empty; name a new folder; nothing was changed")
    if not str(data).isprintable() or set(str(data)) & set('"$`\\'):
        raise BackupError(f"{str(data)!r} has a character that pg_ctl cannot take; name another folder")
    if len(os.fsencode(data)) > LONGEST:
        raise BackupError(f"{data} is longer than {LONGEST} bytes: too long for the socket in it")
    for folder in (base, archive):
        if data.resolve().is_relative_to(folder.resolve()):
            raise BackupError(f"{data} is inside {folder}; name a folder elsewhere")


def _default_user(archive: Path) -> str | None:
    """Return who is to run the server: who can read the archive, as its server writes there."""
    if os.geteuid() == 0 and archive.is_dir() and (owner := archive.stat().st_uid):
        try:
            return pwd.getpwuid(owner).pw_name
        except KeyError:
            pass
    return tools.server_user()


def _check_user(user: str | None) -> None:
    if user is None:
        return
    if os.geteuid() != 0:
        raise BackupError(f"only root can run a server as {user}; leave --os-user out to run it as yourself")
    try:
        if pwd.getpwnam(user).pw_uid == 0:
            raise BackupError("PostgreSQL does not run as root; name another user, such as postgres")
    except KeyError:
        raise BackupError(f"there is no user {user} on this machine") from None


def _check_target(target: Target, made: BaseBackup, available: Segments) -> None:
    early = f"{target} is before the end of the base backup {made.path}: take an older base backup"
    if target.time is not None and target.time.timestamp() < made.started_at.timestamp() + 1:
        # The server would not notice: where nothing was committed since, it stops at the backup's end.
        raise BackupError(f"{early}; this one was begun at {_shown(made.started_at)}")
    if target.lsn is not None:
        if position(target.lsn) < position(made.end_lsn):
            raise BackupError(f"{early}; this one ends at {made.end_lsn}")
        if position(target.lsn) > (available.last + 1) * available.size:
            end = available.name(available.last)
            raise _not_archived(f"{target} is past the end of the archive {available.archive}, which is {end}")
    gap = available.gap()
    if gap is None:
        return
    # A target by time or name may well lie before the gap; that is for the server to find out.
    wanted = available.number_at(target.lsn) if target.lsn is not None else available.last
    free = target.time is not None or target.name is not None or target.xid is not None
    if gap <= available.ended or (wanted >= gap and not free):
        missing = available.name(gap)
        raise BackupError(f"{available.archive} lacks the WAL segment {missing}: {target} cannot be reached")


def _check_archive(available: Segments, user: str | None) -> None:
    """Look whether the server will be able to read the archive, every file of it."""
    archive = available.archive
    if not any(path.parent == archive for path in available.paths.values()):
        raise BackupError(f"{archive} has no WAL that follows on the base backup; is it the archive of its server?")
    python, *arguments = ARCHIVE_PROGRAM
    try:
        tools.run(Path(python), [*arguments, "check", archive.absolute()], user=user)
    except BackupError as error:
        raise BackupError(
            f"the server, as the user {user or tools.user_name(os.geteuid())}, cannot read {archive}; "
            f"give --os-user its owner, and give it all files there (chown -R): {error}"
        ) from None


def _replay(clone: Clone, made: BaseBackup, available: Segments, target: Target) -> Recovered:
    settings = {"restore_command": restore_command(available.archive), **target.settings()}
    total = available.last - available.first + 1
    with Bar() as bar:
        try:
            clone.replay(settings, lambda: bar.draw("replaying WAL", clone.log().count('restored log file "'), total))
        except BackupError as error:
            raise _explained(clone.log(), error, target, made, available) from None
    said = clone.log()
    lsn = _found(r"redo done at (\S+)", said) or made.end_lsn
    reached, last = available.number_at(lsn), available.last_whole
    if target == Target() and last is not None and reached < last:
        raise BackupError(
            f"{available.paths[reached]} is damaged: nothing after {lsn} can be read, although there are later "
            "segments; recover to a time before it"
        )
    return Recovered(
        data_dir=clone.data,
        base=made.path,
        last_commit=_last_commit(said),
        lsn=lsn,
        stopped=_found(r"(recovery stopping .*)", said) or "",
        timeline=int(_found(r"selected new timeline ID: (\d+)", said) or 0),
        segments=len(set(re.findall(r'restored log file "([0-9A-F]{24})"', said))),
        running=False,
    )


def _not_archived(message: str) -> BackupError:
    error = BackupError(message)
    error.add_note(
        "A server archives a segment when it is full or archive_timeout is over; "
        "SELECT pg_switch_wal() on it archives the last one now"
    )
    return error


def _explained(said: str, error: BackupError, target: Target, made: BaseBackup, available: Segments) -> BackupError:
    """Return what the server's log says of why it did not start."""
    if "requested recovery stop point is before consistent recovery point" in said:
        return BackupError(
            f"{target} is before the end of the base backup {made.path}, {made.end_lsn}: take an older base backup"
        )
    if "recovery ended before configured recovery target was reached" in said:
        gap, last = available.gap(), _last_commit(said)
        end = _found(r"redo done at (\S+)", said) or made.end_lsn
        missed = (
            f"{target} was not found between the end of the base backup, {made.end_lsn}, and the end of the WAL in "
            f"{available.archive}, {end}; "
            + (f"the last commit there is of {_shown(last)}" if last else "nothing was committed there")
        )
        if gap is None:
            return _not_archived(missed)
        return BackupError(f"{missed}; the archive lacks the WAL segment {available.name(gap)}")
    tail = "".join(f"\n  {line}" for line in said.splitlines()[-8:])
    return BackupError(f"the server did not recover: {error}{tail}")


def _found(pattern: str, said: str) -> str | None:
    found: Sequence[str] = re.findall(pattern, said)
    return found[-1] if found else None


def _last_commit(said: str) -> datetime | None:
    text = _found(r"last completed transaction was at log time (\S+ \S+)\+00", said)
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(" ")
