"""Point-in-time recovery: a base backup and the archive of WAL become a new server as it was at a moment."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Final

from ... import checks
from ...errors import BackupError, InvalidValue
from ...progress import Bar
from . import basebackup, tools
from .basebackup import BaseBackup
from .files import reported

_SEGMENT: Final = re.compile(r"([0-9A-F]{24})(\.partial)?")
_LSN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")

_LOG: Final = "recovery.log"
_LONGEST_SOCKET: Final = 107 - len("/.s.PGSQL.5432")
_PATIENCE: Final = 5 * 366 * 86400
"""Seconds that replaying may take. pg_ctl has no "for ever", and sees when the server ends."""

_TICK: Final = 0.1
"""Seconds between two looks at the server."""

_PERSISTENT: Final = """\

# A recovered server does not archive into the archive that it came from. Give it one of its own before you change this.
archive_mode = 'off'
"""


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
        if self.lsn is not None and not _LSN.fullmatch(checks.text("lsn", self.lsn)):
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
    """

    data_dir: Path
    base: Path
    last_commit: datetime | None
    lsn: str
    stopped: str
    timeline: int
    segments: int
    running: bool


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
    made = basebackup.describe(base)
    pg_ctl = tools.find("pg_ctl", made.major * 10000, exact=True)
    basebackup.verify(base, archive=archive)
    with reported(archive):
        wal = _Wal(made, archive)
    _check_target(target, made, wal)
    _check_archive(wal, user)
    before = data.stat() if data.exists() else None
    try:
        with reported(data):
            _copy(made, data, user)
        return _run(pg_ctl, made, wal, data, target, user, keep_running=keep_running)
    except BaseException:
        with suppress(BackupError):
            _stop(pg_ctl, data, user, mode="immediate")
        _clear(data, before)
        raise


class _Wal:
    """Which segments there are for a base backup, in the archive and in the backup itself.

    Raises BackupError for an archive of another server, and for a segment that is cut off.
    """

    def __init__(self, made: BaseBackup, archive: Path) -> None:
        self.archive = archive
        own = made.path / "pg_wal"
        files = {
            found[1]: path
            for folder in (own, archive)
            if folder.is_dir()
            for path in sorted(folder.iterdir(), reverse=True)  # X after X.partial
            if (found := _SEGMENT.fullmatch(path.name)) and path.is_file()
        }
        timelines = _timelines(archive, made.timeline)
        first = f"{made.timeline:08X}"
        begin = next((path for name, path in sorted(files.items()) if name[:8] == first), None)
        if begin is None:
            raise BackupError(f"{archive} has no WAL of the timeline of {made.path}; is it the archive of this server?")
        self.size = _segment_size(begin, made)
        self.first = _position(made.start_lsn) // self.size
        self.ended = (_position(made.end_lsn) - 1) // self.size
        self.there: dict[int, Path] = {}
        for name, path in files.items():
            timeline, number = int(name[:8], 16), self._number(name)
            begun = timelines.get(timeline)
            if begun is not None and number >= max(begun // self.size, self.first):
                if path.stat().st_size != self.size:
                    raise BackupError(
                        f"{path} is damaged: it has {path.stat().st_size:,} bytes, and a segment has {self.size:,}"
                    )
                _segment_size(path, made)
                self.there[number] = max(path, self.there.get(number, path), key=lambda one: one.name[:8])
        self.newest = max(timelines)
        self.last = max(self.there, default=self.first)

    def gap(self) -> int | None:
        """Return the first segment that is missing although there are later ones, or which the backup needs."""
        for number in range(self.first, max(self.last, self.ended) + 1):
            if number not in self.there:
                return number
        return None

    def name(self, number: int, timeline: int | None = None) -> str:
        """Return the name of a segment, on the newest timeline where that is not known otherwise."""
        per_log = 2**32 // self.size
        return f"{timeline or self.newest:08X}{number // per_log:08X}{number % per_log:08X}"

    def _number(self, name: str) -> int:
        return int(name[8:16], 16) * (2**32 // self.size) + int(name[16:], 16)


def _timelines(archive: Path, first: int) -> dict[int, int]:
    """Return the timelines that lead from *first* to the newest that the server would follow, and where each begins."""
    newest = first
    while (archive / f"{newest + 1:08X}.history").exists():
        newest += 1
    if newest == first:
        return {first: 0}
    lines = [line.split(None, 2) for line in (archive / f"{newest:08X}.history").read_text().splitlines()]
    parents = [(int(line[0]), _position(line[1])) for line in lines if len(line) > 1 and line[0].isdecimal()]
    begins = dict(zip([timeline for timeline, _ in parents[1:]] + [newest], [at for _, at in parents], strict=True))
    if first not in dict(parents):
        raise BackupError(f"timeline {newest} of {archive} does not descend from the backup's, {first}")
    return {first: 0, **{timeline: at for timeline, at in begins.items() if timeline > first}}


def _segment_size(path: Path, made: BaseBackup) -> int:
    """Return how large segments are, as the header of *path* has it, which must be of the backup's server."""
    with path.open("rb") as file:
        header = file.read(40)
    with (made.path / "global/pg_control").open("rb") as file:
        system = file.read(8)
    # XLogLongPageHeaderData: after 24 bytes the server's identifier, then the size; both in the machine's own order
    found, size, block = struct.unpack("=8sII", header[24:]) if len(header) == 40 else (b"", 0, 0)
    if size < 2**20 or size & (size - 1) or not block:
        raise BackupError(f"{path} is damaged: it is no segment of WAL")
    if found != system:
        raise BackupError(f"{path} is of another server than {made.path}")
    return int(size)


def _position(lsn: str) -> int:
    high, _, low = lsn.partition("/")
    return int(high, 16) * 2**32 + int(low, 16)


def _check_places(base: Path, archive: Path, data: Path) -> None:
    for folder in (base, archive):
        if not folder.is_dir():
            raise BackupError(f"there is no folder {folder}")
    if not data.parent.is_dir():
        raise BackupError(f"there is no folder {data.parent} to make {data.name} in")
    with reported(data):
        if data.is_symlink() or (data.exists() and (not data.is_dir() or any(data.iterdir()))):
            raise BackupError(f"{data} is not empty; name a new folder; nothing was changed")
    if not str(data).isprintable() or set(str(data)) & set('"$`\\'):
        raise BackupError(f"{str(data)!r} has a character that pg_ctl cannot take; name another folder")
    if len(os.fsencode(data)) > _LONGEST_SOCKET:
        raise BackupError(f"{data} is longer than {_LONGEST_SOCKET} bytes: too long for the socket in it")
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


def _check_target(target: Target, made: BaseBackup, wal: _Wal) -> None:
    early = f"{target} is before the end of the base backup {made.path}: take an older base backup"
    if target.time is not None and target.time.timestamp() < made.started_at.timestamp() + 1:
        # The server would not notice: where nothing was committed since, it stops at the backup's end.
        raise BackupError(f"{early}; this one was begun at {_shown(made.started_at)}")
    if target.lsn is not None:
        if _position(target.lsn) < _position(made.end_lsn):
            raise BackupError(f"{early}; this one ends at {made.end_lsn}")
        if _position(target.lsn) > (wal.last + 1) * wal.size:
            raise BackupError(f"{target} is past the end of the archive {wal.archive}, which is {wal.name(wal.last)}")
    gap = wal.gap()
    if gap is None:
        return
    # A target by time or name may well lie before the gap; that is for the server to find out.
    wanted = _position(target.lsn) // wal.size if target.lsn is not None else wal.last
    free = target.time is not None or target.name is not None or target.xid is not None
    if gap <= wal.ended or (wanted >= gap and not free):
        raise BackupError(f"{wal.archive} lacks the WAL segment {wal.name(gap)}: {target} cannot be reached")


def _check_archive(wal: _Wal, user: str | None) -> None:
    """Fetch a segment as the server will."""
    segment = next((path for path in wal.there.values() if path.parent == wal.archive), None)
    if segment is None:
        raise BackupError(f"{wal.archive} has no WAL that follows on the base backup; is it the archive of its server?")
    python, *arguments = basebackup.PROGRAM
    try:
        tools.run(Path(python), [*arguments, "get", segment.absolute(), "/dev/null"], user=user)
    except BackupError as error:
        raise BackupError(
            f"the server, as the user {user or pwd.getpwuid(os.geteuid()).pw_name}, cannot read {wal.archive}; "
            f"give --os-user its owner: {error}"
        ) from None


def _copy(made: BaseBackup, data: Path, user: str | None) -> None:
    """Copy the backup to *data*; with modes 0700 and 0600, and owned by *user*."""
    source = made.path
    control = Path("global/pg_control")
    if (source / "tablespace_map").exists():
        raise BackupError(f"{source} has tablespaces outside its folder; recover it with PostgreSQL's own programs")
    owner = pwd.getpwnam(user) if user is not None else None

    def own(path: Path, mode: int) -> None:
        path.chmod(mode)
        if owner is not None:
            os.chown(path, owner.pw_uid, owner.pw_gid)

    data.mkdir(0o700, exist_ok=True)
    own(data, 0o700)
    done = 0
    with Bar() as bar:
        # The server does not start without this file: a copy that was cut off must not pass for a server.
        for path in (*(one for one in _walk(source) if one != control), control):
            if (source / path).is_dir():
                (data / path).mkdir(0o700)
                own(data / path, 0o700)
                continue
            shutil.copyfile(source / path, data / path)
            own(data / path, 0o600)
            done += (source / path).stat().st_size
            bar.draw("copying", done, made.size)
    # Left behind by a standby that the backup was made of, it would make the server wait for more WAL for ever.
    (data / "standby.signal").unlink(missing_ok=True)
    # Of a socket in the old data folder, as an embedded server has it
    for lock in data.glob(".s.PGSQL.*.lock"):
        lock.unlink()
    (data / "recovery.signal").touch()
    with (data / "postgresql.auto.conf").open("a") as conf:
        conf.write(_PERSISTENT)
    # Where they are kept in /etc, the backup does not have them.
    for name, text in (("postgresql.conf", ""), ("pg_hba.conf", "local all all peer\n")):
        if not (data / name).exists():
            (data / name).write_text(text)
    for name in ("recovery.signal", "postgresql.auto.conf", "postgresql.conf", "pg_hba.conf"):
        own(data / name, 0o600)


def _walk(source: Path, inside: Path = Path()) -> Iterator[Path]:
    """Yield what is in *source*, relative to it, each folder before its contents."""
    for path in sorted((source / inside).iterdir()):
        yield inside / path.name
        if path.is_dir():
            yield from _walk(source, inside / path.name)


def _run(
    pg_ctl: Path,
    made: BaseBackup,
    wal: _Wal,
    data: Path,
    target: Target,
    user: str | None,
    *,
    keep_running: bool,
) -> Recovered:
    log = data / _LOG
    # On the command line they hold for this run alone, go before whatever files say, and hold no secret.
    settings = {
        "data_directory": str(data),
        "hba_file": str(data / "pg_hba.conf"),
        "external_pid_file": str(data / "recovery.pid"),
        "listen_addresses": "",
        "unix_socket_directories": f'"{data}"',
        "port": "5432",
        "ssl": "off",
        # Without it the server needs no setting to be as large as it was, and nobody sees what is not recovered yet.
        "hot_standby": "off",
        "archive_mode": "off",
        "restore_command": basebackup.restore_command(wal.archive),
        "recovery_min_apply_delay": "0",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "warning",
        "timezone": "UTC",
        "lc_messages": "C",
        **target.settings(),
    }
    options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
    total = wal.last - wal.first + 1
    with Bar() as bar:

        def draw() -> None:
            bar.draw("replaying WAL", _read(log).count('restored log file "'), total)

        try:
            tools.run(
                pg_ctl,
                [
                    "start",
                    "--wait",
                    f"--timeout={_PATIENCE}",
                    "--silent",
                    f"--pgdata={data}",
                    f"--log={log}",
                    f"--options={options}",
                ],
                tick=draw,
                user=user,
            )
            # Without hot standby pg_ctl does not wait for the end of recovery.
            while not _is_ready(data):
                draw()
                sleep(_TICK)
        except BackupError as error:
            raise _explained(_read(log), error, target, made, wal) from None
    said = _read(log)
    lsn = _found(r"redo done at (\S+)", said) or made.end_lsn
    reached = _position(lsn) // wal.size
    complete = [number for number, path in wal.there.items() if not path.name.endswith(".partial")]
    if target == Target() and complete and reached < max(complete):
        raise BackupError(
            f"{wal.there[reached]} is damaged: nothing after {lsn} can be read, although there are later segments; "
            "recover to a time before it"
        )
    if not keep_running:
        _stop(pg_ctl, data, user, mode="fast")
    return Recovered(
        data_dir=data,
        base=made.path,
        last_commit=_last_commit(said),
        lsn=lsn,
        stopped=_found(r"(recovery stopping .*)", said) or "",
        timeline=int(_found(r"selected new timeline ID: (\d+)", said) or 0),
        segments=len(set(re.findall(r'restored log file "([0-9A-F]{24})"', said))),
        running=keep_running,
    )


def _explained(said: str, error: BackupError, target: Target, made: BaseBackup, wal: _Wal) -> BackupError:
    """Return what the server's log says of why it did not start."""
    if "requested recovery stop point is before consistent recovery point" in said:
        return BackupError(
            f"{target} is before the end of the base backup {made.path}, {made.end_lsn}: take an older base backup"
        )
    if "recovery ended before configured recovery target was reached" in said:
        gap, last = wal.gap(), _last_commit(said)
        end = _found(r"redo done at (\S+)", said) or made.end_lsn
        return BackupError(
            f"{target} was not found between the end of the base backup, {made.end_lsn}, and the end of the WAL in "
            f"{wal.archive}, {end}; "
            + (f"the last commit there is of {_shown(last)}" if last else "nothing was committed there")
            + (f"; the archive lacks the WAL segment {wal.name(gap)}" if gap is not None else "")
        )
    tail = "".join(f"\n  {line}" for line in said.splitlines()[-8:])
    return BackupError(f"the server did not recover: {error}{tail}")


def _is_ready(data: Path) -> bool:
    """Return whether the server has recovered. Raises BackupError when it has ended."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        os.kill(int(lines[0]), 0)
    except (FileNotFoundError, ProcessLookupError):
        raise BackupError("the server has ended") from None
    return len(lines) > 7 and lines[7].strip() == "ready"


def _stop(pg_ctl: Path, data: Path, user: str | None, *, mode: str) -> None:
    if (data / "postmaster.pid").exists():
        tools.run(
            pg_ctl,
            ["stop", f"--mode={mode}", "--wait", f"--timeout={_PATIENCE}", "--silent", f"--pgdata={data}"],
            user=user,
        )


def _clear(data: Path, before: os.stat_result | None) -> None:
    """Make *data* again what it was *before*: empty, or not there."""
    for path in data.iterdir() if data.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if data.exists():
        if before is None:
            data.rmdir()
        else:
            os.chown(data, before.st_uid, before.st_gid)
            data.chmod(stat.S_IMODE(before.st_mode))


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _found(pattern: str, said: str) -> str | None:
    found: Sequence[str] = re.findall(pattern, said)
    return found[-1] if found else None


def _last_commit(said: str) -> datetime | None:
    text = _found(r"last completed transaction was at log time (\S+ \S+)\+00", said)
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(" ")
