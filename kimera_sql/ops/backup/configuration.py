"""The server's configuration, where it is outside the data folder, as on Debian.

It is copied with a base backup, and given to a recovered server without what is the original's alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql as composed

from ... import sql
from ...errors import BackupError
from . import tools
from .files import fsync, reported

_queries = sql.Queries("backup")

T = TypeVar("T")

COPY: Final = "kimera_configuration.json"
"""The file in a base backup that has the copy."""

_FILES: Final = {"config_file": "postgresql.conf", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
"""The settings that name the server's files, and what those are called in a data folder."""

_WITHOUT: Final = {"postgresql.conf": "", "pg_hba.conf": "local all all peer\n", "pg_ident.conf": ""}
"""What a recovered server gets in the place of a file of which there is no copy."""

_ORIGINALS: Final = {
    **dict.fromkeys(
        ("data_directory", "hba_file", "ident_file", "external_pid_file", "stats_temp_directory"),
        "a place of the original server's",
    ),
    **dict.fromkeys(
        ("archive_mode", "archive_command", "archive_library", "archive_cleanup_command", "restore_command"),
        "the archive is the original server's",
    ),
    **dict.fromkeys(
        (
            "primary_conninfo",
            "primary_slot_name",
            "synchronous_standby_names",
            "promote_trigger_file",
            "recovery_end_command",
            "recovery_min_apply_delay",
        ),
        "the recovered server is no standby, and has none",
    ),
}
"""The settings that a recovered server must not have, and why."""

_TLS_FILES: Final = (
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
)

_LINE: Final = re.compile(r"\s*([A-Za-z_][\w.$]*)\s*=?\s*('(?:[^'\\]|''|\\.)*'|[^\s#']*)")
_INCLUDES: Final = ("include", "include_if_exists", "include_dir")
_DEBIAN: Final = re.compile(r"/etc/postgresql/\d+/([^/]+)/postgresql\.conf")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a base backup has of a configuration outside the data folder.

    places: the paths that config_file, hba_file and ident_file have, as far as they could be seen. files: the texts of
    those that were outside, and of what they include, by their paths. lacking: what is not here, a sentence each.
    """

    places: Mapping[str, str]
    files: Mapping[str, str]
    lacking: tuple[str, ...]

    @property
    def cluster(self) -> str | None:
        """The name of the original as a cluster of Debian's, None where it is none."""
        found = _DEBIAN.fullmatch(self.places.get("config_file", ""))
        return found[1] if found else None


def copy_configuration(conn: psycopg.Connection[Any], base: Path) -> None:
    """Put a copy of the configuration that is outside *conn*'s data folder into *base*, as far as it can be read.

    The server reads it, where the role may have it do so, else this process, where the server is on this machine.
    """
    places: dict[str, str] = dict(_queries.configuration_files.fetchall(conn))
    data = places.pop("data_directory", None)
    if data is not None:
        reader = _Reader(conn, PurePosixPath(data))
        texts = {setting: reader.read(place) for setting, place in places.items()}
        reader.follow(places["config_file"], texts["config_file"])
        copied = Configuration(places, reader.files, tuple(reader.lacking))
    elif all((base / name).exists() for name in _FILES.values()):
        return
    else:
        hidden = (
            "the configuration is outside the data folder and not in the backup, as the role may not see where it is: "
            f"GRANT pg_read_all_settings TO {composed.Identifier(conn.info.user).as_string()}"
        )
        copied = Configuration({}, {}, (hidden,))
    if not (copied.files or copied.lacking):
        return
    files = [{"path": path, "sha256": _sha256(text), "text": text} for path, text in copied.files.items()]
    target = base / COPY
    target.touch(0o600)
    target.write_text(
        json.dumps({"places": dict(copied.places), "files": files, "lacking": list(copied.lacking)}, indent=1)
    )
    fsync(target)


def read_configuration(base: Path) -> Configuration:
    """Return what the base backup *base* has of it. Raises BackupError where it is damaged."""
    path = base / COPY
    with reported(path):
        if not path.exists():
            return Configuration({}, {}, ())
        try:
            copy = json.loads(path.read_bytes())
            files = {one["path"]: one["text"] for one in copy["files"]}
            if [one["sha256"] for one in copy["files"]] != [_sha256(text) for text in files.values()]:
                raise BackupError(f"{path} is damaged: a file in it is not what was copied")
            return Configuration(copy["places"], files, tuple(copy["lacking"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(f"{path} is damaged: {error!r}") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


class _Reader:
    """Reads files of the server's machine, and keeps those that are outside its data folder."""

    def __init__(self, conn: psycopg.Connection[Any], data: PurePosixPath) -> None:
        self._conn = conn
        self._data = data
        self.files: dict[str, str] = {}
        self.lacking: list[str] = []

    def read(self, path: str, *, optional: bool = False) -> str:
        """Return the text of the file *path*, nothing where it cannot be read."""
        try:
            content = self._ask(
                lambda: _queries.read_file.fetchval(self._conn, bytes, path=path), lambda: Path(path).read_bytes()
            )
        except _UnreadError as error:
            if not (optional and error.missing):
                self._lacks(path, error)
            return ""
        text = (content or b"").decode(errors="surrogateescape")
        if not PurePosixPath(path).is_relative_to(self._data):
            self.files[path] = text
        return text

    def follow(self, path: str, text: str) -> None:
        """Read the files that *text*, the settings in the file *path*, includes, and those that they do."""
        for name, value in _settings(text):
            target = str(PurePosixPath(path).parent / value)
            included = [target] if name in ("include", "include_if_exists") else []
            if name == "include_dir":
                included = self._list(target)
            for one in included:
                self.follow(one, self.read(one, optional=name == "include_if_exists"))

    def _list(self, folder: str) -> list[str]:
        try:
            names = self._ask(
                lambda: [name for (name,) in _queries.list_folder.fetchall(self._conn, path=folder)],
                lambda: [one.name for one in Path(folder).iterdir()],
            )
        except _UnreadError as error:
            self._lacks(folder, error)
            return []
        return [f"{folder}/{name}" for name in sorted(names) if name.endswith(".conf") and not name.startswith(".")]

    def _lacks(self, path: str, error: _UnreadError) -> None:
        if not PurePosixPath(path).is_relative_to(self._data):
            self.lacking.append(f"{path} is outside the data folder and not in the backup: {error}")

    def _ask(self, server: Callable[[], T], here: Callable[[], T]) -> T:
        """Return what the server reads, or else this process. Raises _UnreadError."""
        try:
            return server()
        except psycopg.errors.InsufficientPrivilege:
            if not tools.is_local(self._conn):
                raise _UnreadError("the role may not read it, and the server is on another machine") from None
        except psycopg.errors.UndefinedFile:
            raise _UnreadError("it is missing", missing=True) from None
        try:
            return here()
        except FileNotFoundError:
            raise _UnreadError("it is missing", missing=True) from None
        except OSError as error:
            raise _UnreadError(f"neither the role nor this process can read it ({error.strerror})") from None


class _UnreadError(Exception):
    """A file of the server's cannot be read. missing: it is not there."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def configure(data: Path, copied: Configuration) -> list[str]:
    """Give the new data folder *data*, the files of a base backup, its configuration: its own, or what was *copied*.

    Returns what was left out of it or is missing, a sentence each.
    """
    notes = list(copied.lacking)
    texts: dict[str, str] = {}
    for setting, name in _FILES.items():
        path = copied.places.get(setting, "")
        if path in copied.files:
            texts[name] = copied.files[path]
        elif (data / name).exists():
            texts[name] = (data / name).read_text(errors="surrogateescape")
        else:
            texts[name] = _WITHOUT[name]
            says = texts[name].strip()
            notes.append(
                f"{name} is not in the backup; " + (f"the new one says {says!r}" if says else "it is empty now")
            )
    place = copied.places.get("config_file", str(data / "postgresql.conf"))
    auto = data / "postgresql.auto.conf"
    files = {
        "postgresql.conf": list(_included(texts["postgresql.conf"], PurePosixPath(place), copied.files)),
        auto.name: auto.read_text(errors="surrogateescape").splitlines(),
    }
    values = dict(_settings("\n".join(line for lines in files.values() for line in lines)))
    reasons = {name: reason for name in values if (reason := _reason(name, values, data))}
    for name, lines in files.items():
        texts[name] = "".join(f"{_without(line, reasons)}\n" for line in _last(lines))
    for name, text in texts.items():
        (data / name).write_text(text, errors="surrogateescape")
    return notes + [
        f"left out of the configuration: {', '.join(name for name in reasons if reasons[name] == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]


def _included(text: str, place: PurePosixPath, files: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the file *place*, and in the place of an inclusion of *files* theirs."""
    for line in text.splitlines():
        name, value = next(_settings(line), ("", ""))
        target = place.parent / value
        found = [path for path in files if path == str(target)]
        if name == "include_dir":
            found = sorted(path for path in files if PurePosixPath(path).parent == target and path.endswith(".conf"))
        if name not in _INCLUDES or not (found or str(place) in files):
            yield line
            continue
        for path in found:
            yield f"# {path}:"
            yield from _included(files[path], PurePosixPath(path), files)


def _last(lines: Sequence[str]) -> list[str]:
    """Return *lines* without those of settings that come again below: pg_createcluster changes the first of several."""
    seen: set[str] = set()
    kept = []
    for line in reversed(lines):
        name, _ = next(_settings(line), ("", ""))
        if name not in seen:
            kept.append(line)
        if name and name not in _INCLUDES:
            seen.add(name)
    return kept[::-1]


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values in a file of settings."""
    for line in text.splitlines():
        if found := _LINE.match(line):
            name, value = found.groups()
            if value.startswith("'"):
                value = re.sub(r"\\(.)", r"\1", value[1:-1].replace("''", "'"))
            yield name.lower(), value


def _without(line: str, reasons: Mapping[str, str]) -> str:
    # Not even as a comment does the value stay: it can hold a password, and Debian lets everybody read the file.
    name, _ = next(_settings(line), ("", ""))
    return f"# {name} was left out: {reasons[name]}" if name in reasons else line


def _reason(name: str, values: Mapping[str, str], data: Path) -> str | None:
    """Return why a recovered server in *data* cannot have the setting *name* of *values*, None where it can."""
    value = values[name]
    if name.startswith("recovery_target"):
        return "it was for another recovery"
    if name in _ORIGINALS:
        return _ORIGINALS[name]
    if name == "port" and value.isdecimal() and _is_taken(int(value)):
        return f"something on this machine listens on {value}"
    if name == "unix_socket_directories" and not all(Path(one.strip().strip('"')).is_dir() for one in value.split(",")):
        return f"{value} is not there"
    if name in _TLS_FILES and value and not (data / value).exists():
        return f"{data / value} is not there"
    if name == "ssl" and value.lower() not in ("off", "false", "no", "0"):
        needed = (values.get("ssl_cert_file", "server.crt"), values.get("ssl_key_file", "server.key"))
        if missing := [str(data / one) for one in needed if not (data / one).exists()]:
            return f"{' and '.join(missing)} is not there"
    return None


def _is_taken(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError:
            return True
    return False


def debian_commands(copied: Configuration, major: int, data: Path) -> tuple[str, ...]:
    """Return the commands that make *data* a cluster of Debian's, none where the original was not one."""
    if copied.cluster is None:
        return ()
    name = f"{copied.cluster}_recovered"
    return (
        f"pg_createcluster {major} {name} --datadir={shlex.quote(str(data))}",
        f"pg_ctlcluster {major} {name} start",
    )
