"""Backups in one folder: dumps that are proven when they are made, and the keeping of dumps, base backups and WAL.

    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.dump            pg_dump's custom format
    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.globals.sql     roles and their settings
    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.json            sha256, sizes, and what the dump must hold
    FOLDER/base/kimera_base_YYYYMMDD_HHMMSS/                 pg_basebackup's output, with its manifest
    FOLDER/wal/                                              the archive of WAL

Times are UTC. Whatever has such a name is complete: it was written under another one, checked, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql as composed
from psycopg.rows import tuple_row

from ... import checks, sql
from ...errors import BackupError
from ...progress import Bar
from ...sql import Connection, Queries
from ...tables import VECTOR_TABLES
from . import basebackup, tools
from .files import PARTIAL, fsync, locked, reported

_queries = sql.Queries("backup")

_STAMP: Final = "%Y%m%d_%H%M%S"
_DUMP: Final = re.compile(r"kimera_full_(\d{8}_\d{6})\.dump")
_BASE: Final = re.compile(r"kimera_base_(\d{8}_\d{6})")
_SEGMENT: Final = re.compile(r"[0-9A-F]{24}")
_DOOMED: Final = ".doomed"

_SAMPLES: Final = 3
_NEIGHBOURS: Final = 10
"""How many searches a table with vectors is tried with, and how many rows each is to find."""


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table holds. checksum: of its rows' values in any order, in hexadecimal."""

    table: str
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class SearchContent:
    """What an exact search for a stored vector finds. sample: the row's id. found: the nearest ids in order."""

    table: str
    sample: str
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds at one moment."""

    tables: tuple[TableContent, ...]
    searches: tuple[SearchContent, ...]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables)


@dataclass(frozen=True, slots=True)
class Origin:
    """The database that a dump is of. server_version: as psycopg counts it, 150005. size: bytes.

    provider, lc_collate, lc_ctype, locale: as pg_database has them. bootstrap: the role its server was made with.
    """

    database: str
    server_version: int
    pgvector: str | None
    encoding: str
    provider: str
    lc_collate: str
    lc_ctype: str
    locale: str | None
    bootstrap: str
    size: int


@dataclass(frozen=True, slots=True)
class Dump:
    """What the manifest beside a dump says. size: bytes. tool_version: pg_dump's, as psycopg counts a server's."""

    path: Path
    size: int
    sha256: str
    globals_sha256: str
    made_at: datetime
    verified_at: datetime
    tool_version: int
    origin: Origin
    contents: Contents


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in the folder. kind: dump or base. size: bytes. rows: of a dump.

    server_version: as "15.5", of a base backup the major alone. complete: it has its manifest, as every one has
    that was proven when it was made; a damage since then is what verify finds.
    """

    kind: str
    name: str
    made_at: datetime
    size: int
    server_version: str | None
    rows: int | None
    complete: bool
    path: Path


@dataclass(frozen=True, slots=True)
class Removed:
    """What prune removed, or would. kind: dump, base or wal. size: bytes."""

    kind: str
    name: str
    size: int


def dump(conn: Connection, folder: Path) -> Dump:
    """Dump *conn*'s database and the server's roles into *folder*, prove the dump, and return its manifest.

    *conn* is outside a transaction. Row counts, checksums and sample searches are taken from the snapshot that the
    dump is of. The archive is decoded to its end before it gets its name. Folders are made with mode 0700, files with
    0600. The verifiers of the roles' passwords are saved by a superuser alone. Raises BackupError when anything
    fails; then nothing new is in the folder. SQLite raises UnsupportedByServer.
    """
    conn = sql.require_postgres(conn, "an SQLite database is backed up as a file: sqlite3 FILE \".backup 'COPY'\"")
    pg_dump, pg_dumpall, pg_restore = (tools.find(name, conn) for name in ("pg_dump", "pg_dumpall", "pg_restore"))
    with locked(folder / "dumps") as dumps:
        made_at = _free_moment(dumps)
        path = dumps / f"kimera_full_{made_at:{_STAMP}}.dump"
        globals_, facts = _companions(path)
        partial = {final: final.with_name(f".{final.name}{PARTIAL}") for final in (globals_, facts, path)}
        try:
            for file in partial.values():
                file.touch(0o600)
            with sql.snapshot(conn), Bar() as bar:
                _queries.settle.fetchval(conn, int)
                origin = _origin(conn)
                snapshot = _queries.export_snapshot.fetchval(conn, str)
                held = contents(conn)
                tools.run(
                    pg_dump,
                    ["--format=custom", "--no-password", f"--snapshot={snapshot}", f"--file={partial[path]}"],
                    tools.parameters(conn),
                    tick=lambda: bar.draw("dumping", partial[path].stat().st_size, origin.size),
                )
                passwords = [] if _queries.is_superuser.fetchval(conn, bool) else ["--no-role-passwords"]
                tools.run(
                    pg_dumpall,
                    [
                        "--globals-only",
                        "--encoding=UTF8",
                        "--no-password",
                        f"--database={tools.parameters(conn)['dbname']}",
                        f"--file={partial[globals_]}",
                        *passwords,
                    ],
                    tools.parameters(conn),
                )
            _decode(pg_restore, partial[path])
            made = Dump(
                path=path,
                size=partial[path].stat().st_size,
                sha256=_sha256(partial[path]),
                globals_sha256=_sha256(partial[globals_]),
                made_at=made_at,
                verified_at=datetime.now(UTC),
                tool_version=tools.version(pg_dump),
                origin=origin,
                contents=held,
            )
            partial[facts].write_text(_to_json(made), encoding="utf-8")
            for file in partial.values():
                fsync(file)
            # The dump last: where there is one, there is all of it.
            for final, file in partial.items():
                file.rename(final)
            fsync(dumps)
        except BaseException:
            for file in (*partial.values(), *partial.keys()):
                file.unlink(missing_ok=True)
            raise
    return made


def contents(conn: psycopg.Connection[Any]) -> Contents:
    """Return what *conn*'s database holds: rows and checksum of every table, and what exact searches find.

    Compare only what was read after the query `settle` in the same transaction. A checksum is the sum of the first
    64 bits of each row's SHA-256, taken of its text: numbers are written there so that they are read back to the bit.
    """
    tables, searches = [], []
    found = _queries.tables.fetchall(conn)
    with Bar() as bar:
        for number, (schema, name, visible) in enumerate(found):
            bar.draw(f"reading {name}", number, len(found))
            row = (
                psycopg.Cursor(conn, row_factory=tuple_row)
                .execute(
                    composed.SQL(
                        "SELECT count(*), COALESCE(sum(('x' || left(encode(sha256(convert_to((one.*)::text, 'UTF8')),"
                        " 'hex'), 16))::bit(64)::bigint), 0) FROM ONLY {} AS one"
                    ).format(composed.Identifier(schema, name))
                )
                .fetchone()
            )
            assert row is not None  # noqa: S101 - an aggregate has one row
            tables.append(TableContent(f"{schema}.{name}", row[0], f"{int(row[1]) % 2**64:016x}"))
            if visible and name in VECTOR_TABLES:
                query = Queries(VECTOR_TABLES[name].entity).sample_searches
                for sample, ids in query.fetchall(conn, samples=_SAMPLES, k=_NEIGHBOURS):
                    searches.append(SearchContent(name, sample, tuple(ids)))
    return Contents(tuple(tables), tuple(searches))


def existing(folder: Path) -> list[Backup]:
    """Return the backups in *folder*, dumps and base backups, the newest first. Raises BackupError."""
    with reported(folder):
        return sorted((*_dumps(folder), *_bases(folder)), key=lambda one: (one.made_at, one.kind), reverse=True)


def newest_dump(folder: Path) -> Path:
    """Return the newest dump in *folder*. Raises BackupError when there is none."""
    for one in existing(folder):
        if one.kind == "dump":
            return one.path
    raise BackupError(f"there is no dump in {folder / 'dumps'}; kimera-sql backup dump makes one")


def verify(path: Path) -> Dump | None:
    """Read all of the backup at *path*, and return the manifest of a dump.

    A dump is compared with its manifest and decoded to its end; one without a manifest, which pg_dump alone has made,
    is only decoded, and gives None. A base backup goes through pg_verifybackup, with the WAL that it needs, and the
    archive beside it must have every segment since. Raises BackupError for what is damaged or missing.
    """
    with reported(path):
        if path.is_dir():
            _verify_base(path)
            return None
        return _verify_dump(path)


def prune(folder: Path, *, keep_days: int = 30, keep: int = 3, dry_run: bool = False) -> list[Removed]:
    """Remove what is older than *keep_days* in *folder*, and return it; with *dry_run* only return it.

    Days are counted back from the newest backup of the kind that verifies now, not from today: while backups fail,
    nothing ages. The newest *keep* dumps that verify stay at any age. Of base backups the newest that verifies and
    had ended before those days stays too, so that every moment of them can be recovered; WAL goes that no base
    backup left there needs. Raises BackupError, and removes nothing, when there is a kind of which none verifies.
    """
    days = timedelta(days=checks.integer("keep_days", keep_days, least=1, most=36525))
    least = checks.limit(keep, "keep")
    with reported(folder):
        if not folder.is_dir():
            raise BackupError(f"there is no folder {folder}")
        old = _old_dumps(folder, days, least)
        bases, wal_from = _old_bases(folder, days)
        wal = _old_wal(folder, wal_from) if wal_from else []
        removed = [Removed(one.kind, one.name, one.size) for one in (*old, *bases)]
        removed += [Removed("wal", file.name, file.stat().st_size) for file in wal]
        if removed and not dry_run:
            with locked(folder / "dumps") as dumps:
                for one in old:
                    for file in (one.path, *_companions(one.path)):
                        file.unlink(missing_ok=True)
                fsync(dumps)
                _remove_bases(folder, bases)
                if wal_from and wal:
                    _clean_wal(folder, wal_from, dry_run=False)
    return removed


def schedule(folder: Path, *, command: str = "kimera-sql") -> str:
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


def differences(expected: Contents, found: Contents) -> list[str]:
    """Return in which tables and searches *found* is not what was *expected*, a sentence each."""
    there = {table.table: table for table in found.tables}
    faults = []
    for table in expected.tables:
        other = there.pop(table.table, None)
        if other is None:
            faults.append(f"{table.table} is missing")
        elif other.rows != table.rows:
            faults.append(f"{table.table} has {other.rows:,} rows instead of {table.rows:,}")
        elif other.checksum != table.checksum:
            faults.append(f"{table.table} has other values: checksum {other.checksum} instead of {table.checksum}")
    faults += [f"{name} should not be there" for name in there]
    searches = {(search.table, search.sample): search.found for search in found.searches}
    faults += [
        f"the search for {search.sample} in {search.table} finds other rows"
        for search in expected.searches
        if searches.get((search.table, search.sample)) != search.found
    ]
    return faults


def settle(conn: psycopg.Connection[Any]) -> None:
    """Make the open transaction of *conn* ready for contents."""
    _queries.settle.fetchval(conn, int)


def _origin(conn: psycopg.Connection[Any]) -> Origin:
    (origin,) = _queries.describe.fetchall(conn, Origin)
    return origin


def _free_moment(dumps: Path) -> datetime:
    """Return the present second, or the first after it of which there is no dump."""
    while True:
        now = datetime.now(UTC).replace(microsecond=0)
        if not any(dumps.glob(f"kimera_full_{now:{_STAMP}}.*")):
            return now
        time.sleep(0.1)


def _companions(path: Path) -> tuple[Path, Path]:
    """Return where the globals and the manifest of the dump *path* are."""
    return path.with_suffix(".globals.sql"), path.with_suffix(".json")


def _to_json(made: Dump) -> str:
    values = asdict(made)
    del values["path"]
    times = {name: values[name].isoformat() for name in ("made_at", "verified_at")}
    return json.dumps(values | times, indent=1)


def manifest(path: Path) -> Dump | None:
    """Return what the manifest of the dump *path* says, None where it has none. Raises BackupError."""
    file = _companions(path)[1]
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BackupError(f"{file} is no manifest: {error}") from None
    try:
        held = values.pop("contents")
        return Dump(
            path=path,
            made_at=datetime.fromisoformat(values.pop("made_at")),
            verified_at=datetime.fromisoformat(values.pop("verified_at")),
            origin=Origin(**values.pop("origin")),
            contents=Contents(
                tuple(TableContent(**table) for table in held["tables"]),
                tuple(SearchContent(one["table"], one["sample"], tuple(one["found"])) for one in held["searches"]),
            ),
            **values,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackupError(f"{file} is no manifest of this version: {error!r}") from None


def _verify_dump(path: Path) -> Dump | None:
    size = path.stat().st_size
    if size == 0:
        raise BackupError(f"{path} is empty")
    made = manifest(path)
    if made is not None:
        if size != made.size:
            raise BackupError(f"{path} is damaged: it has {size:,} bytes, and its manifest says {made.size:,}")
        if _sha256(path) != made.sha256:
            raise BackupError(f"{path} is damaged: its sha256 is not the manifest's")
        globals_ = _companions(path)[0]
        if _sha256(globals_) != made.globals_sha256:
            raise BackupError(f"{globals_} is damaged: its sha256 is not the manifest's")
    _decode(tools.find("pg_restore", made.tool_version if made else None), path)
    return made


def _decode(pg_restore: Path, path: Path) -> None:
    # Writing the script reads and decompresses everything; --list would stop after the table of contents.
    with path.open("rb") as file:
        if file.read(5) != b"PGDMP":
            raise BackupError(f"{path} is no dump in pg_dump's custom format")
    try:
        tools.run(pg_restore, ["--file=/dev/null", path.absolute()])
    except BackupError as error:
        raise BackupError(f"{path} cannot be decoded: {error}") from None


def _verify_base(path: Path) -> None:
    if not (path / "backup_manifest").is_file():
        raise BackupError(f"{path} is no base backup: it has no backup_manifest")
    archive = path.parent.parent / "wal"
    basebackup.verify(path, archive=archive)
    if archive.is_dir() and (gap := _first_gap(archive, _first_segment(path))):
        raise BackupError(f"{archive} lacks the WAL segment {gap}: nothing later can be recovered from {path}")


def _major(base: Path) -> int:
    text = (base / "PG_VERSION").read_text().strip()
    if not text.isdecimal():
        raise BackupError(f"{base / 'PG_VERSION'} is damaged")
    return int(text)


def _first_segment(base: Path) -> str:
    """Return the name of the WAL segment in which recovery from *base* begins."""
    found = re.search(r"^START WAL LOCATION: .*\(file ([0-9A-F]{24})\)$", (base / "backup_label").read_text(), re.M)
    if not found:
        raise BackupError(f"{base / 'backup_label'} names no WAL segment")
    return found[1]


def _first_gap(archive: Path, first: str) -> str | None:
    """Return the first segment from *first* on that *archive* lacks though it has later ones of the timeline."""
    names = {file.name for file in archive.iterdir() if _SEGMENT.fullmatch(file.name)}
    later = sorted(name for name in names if name[:8] == first[:8] and name >= first)
    if not later:
        return None
    per_log = 2**32 // (archive / later[0]).stat().st_size
    number = int(first[8:16], 16) * per_log + int(first[16:], 16)
    while (name := f"{first[:8]}{number // per_log:08X}{number % per_log:08X}") <= later[-1]:
        if name not in names:
            return name
        number += 1
    return None


def _dumps(folder: Path) -> Iterator[Backup]:
    for path in (folder / "dumps").glob("*"):
        if (moment := _moment(_DUMP, path)) and path.is_file():
            try:
                made = manifest(path)
            except BackupError:
                made = None
            size = path.stat().st_size
            yield Backup(
                kind="dump",
                name=path.name,
                made_at=moment,
                size=size,
                server_version=tools.version_text(made.origin.server_version) if made else None,
                rows=made.contents.rows if made else None,
                complete=made is not None and made.size == size,
                path=path,
            )


def _bases(folder: Path) -> Iterator[Backup]:
    for path in (folder / "base").glob("*"):
        if (moment := _moment(_BASE, path)) and path.is_dir():
            version = path / "PG_VERSION"
            yield Backup(
                kind="base",
                name=path.name,
                made_at=moment,
                size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
                server_version=version.read_text().strip() if version.is_file() else None,
                rows=None,
                complete=(path / "backup_manifest").is_file(),
                path=path,
            )


def _moment(pattern: re.Pattern[str], path: Path) -> datetime | None:
    found = pattern.fullmatch(path.name)
    try:
        return datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def _old_dumps(folder: Path, days: timedelta, keep: int) -> list[Backup]:
    """Return the dumps that may go."""
    ordered = sorted(_dumps(folder), key=lambda one: one.made_at, reverse=True)
    good = _good(ordered, keep)
    return [one for one in ordered if one.made_at < good[0].made_at - days and one not in good] if good else []


def _old_bases(folder: Path, days: timedelta) -> tuple[list[Backup], Path | None]:
    """Return the base backups that may go, and the oldest that stays and can be used."""
    ordered = sorted(_bases(folder), key=lambda one: one.made_at, reverse=True)
    good = _good(ordered, 1)
    if not good:
        return [], None
    before = good[0].made_at - days
    for one in ordered:
        if one.complete and _ended_at(one) < before and not _fault(one):
            return [older for older in ordered if older.made_at < one.made_at], one.path
    return [], [one for one in ordered if one.complete][-1].path


def _remove_bases(folder: Path, bases: Sequence[Backup]) -> None:
    # A removal that is cut short leaves no half of a backup under a backup's name.
    for one in bases:
        one.path.rename(one.path.with_name(f".{one.name}{_DOOMED}"))
    for doomed in (folder / "base").glob(f".kimera_base_*{_DOOMED}"):
        shutil.rmtree(doomed)


def _ended_at(base: Backup) -> datetime:
    # The manifest is written at the end. A copy that has a later time only makes an older backup stay.
    written = datetime.fromtimestamp((base.path / "backup_manifest").stat().st_mtime, UTC)
    return max(base.made_at, written)


def _good(ordered: Sequence[Backup], count: int) -> list[Backup]:
    """Return the first *count* of *ordered* that verify. Raises BackupError when there are some and none does."""
    good: list[Backup] = []
    faults = []
    for one in ordered:
        if len(good) == count:
            break
        if fault := _fault(one):
            faults.append(f"\n  {fault}")
        else:
            good.append(one)
    if ordered and not good:
        raise BackupError(f"nothing was removed, as no {ordered[0].kind} is known to be good:{''.join(faults)}")
    return good


def _fault(one: Backup) -> str | None:
    """Return what is wrong with a backup, None where it verifies."""
    if not one.complete:
        return f"{one.path} does not have its manifest, or is not as long as that says"
    try:
        verify(one.path)
    except BackupError as error:
        return str(error)
    return None


def _old_wal(folder: Path, base: Path) -> list[Path]:
    """Return the files of the archive that come before what *base* needs."""
    if not (folder / "wal").is_dir():
        return []
    # With -n the names come on standard output, a path each.
    return sorted(Path(line) for line in _clean_wal(folder, base, dry_run=True).splitlines() if line)


def _clean_wal(folder: Path, base: Path, *, dry_run: bool) -> str:
    tool = tools.find("pg_archivecleanup", _major(base) * 10000)
    return tools.run(tool, [*(["-n"] if dry_run else []), (folder / "wal").absolute(), _first_segment(base)])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unit(command: str) -> str:
    return command.replace("%", "%%").replace("$", "$$")


def _cron(command: str) -> str:
    return command.replace("%", "\\%")
