"""Backups of a PostgreSQL server, restores, and recovery to a moment: all of it in one folder.

    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.dump           a database, in pg_dump's custom format
    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.globals.sql    the server's roles and their settings
    FOLDER/dumps/kimera_full_YYYYMMDD_HHMMSS.json           the dump's manifest: sha256, sizes, what it must hold
    FOLDER/base/kimera_base_YYYYMMDD_HHMMSS/                a base backup: the whole server's files, and their manifest
    FOLDER/wal/                                             the archive of WAL: what was written since

Times are UTC. Whatever has such a name is complete: it was written under another name, checked, and renamed. Whose
backup it is, its name does not say: a dump's manifest does, and a base backup's files.

| module | |
|---|---|
| dumps, contents | making and verifying a dump; what a database holds, to compare it with what is restored |
| base_backups, configuration | making and verifying a base backup; the configuration that goes with it |
| archiving, copy_wal | getting WAL into the archive and out of it; the program that the server runs for that |
| inventory, retention | what the folder has; what of it may go |
| schedule | systemd units and a line for cron |
| restore, drill, scratch | a dump into a database, or onto a throwaway server; what both begin with |
| properties | what a database has besides its contents |
| recovery, clone | a base backup and WAL into a server as it was at a moment; its folder and process |
| private_server | a server that runs for a drill or a recovery, and ends with the process |
| wal, segments | the arithmetic of WAL's names; which segments there are |
| layout, files, tools | names and places; locks and syncs; PostgreSQL's own programs |
"""

from .archiving import ARCHIVE_PROGRAM, archive_settings, postgresql_conf, receive_wal
from .base_backups import BaseBackup, make_base
from .drill import Drill, run_drill
from .dumps import Dump, Origin, make_dump
from .inventory import Backup, BackupKind, list_backups, list_backups_of, newest_dump, verify_backup
from .properties import Grant, Properties, Setting
from .recovery import Recovered, Target, recover
from .restore import Restored, restore_dump
from .retention import Removed, RemovedKind, prune_backups
from .schedule import daily_schedule
from .scratch import left_databases

__all__ = [
    "ARCHIVE_PROGRAM",
    "Backup",
    "BackupKind",
    "BaseBackup",
    "Drill",
    "Dump",
    "Grant",
    "Origin",
    "Properties",
    "Recovered",
    "Removed",
    "RemovedKind",
    "Restored",
    "Setting",
    "Target",
    "archive_settings",
    "daily_schedule",
    "left_databases",
    "list_backups",
    "list_backups_of",
    "make_base",
    "make_dump",
    "newest_dump",
    "postgresql_conf",
    "prune_backups",
    "receive_wal",
    "recover",
    "restore_dump",
    "run_drill",
    "verify_backup",
]
