"""The errors that kimera_sql raises itself; those of psycopg and sqlite3 pass through."""

import psycopg


class KimeraError(Exception):
    """Base of every error that kimera_sql raises."""


class SettingsError(KimeraError, ValueError):
    """An environment variable or an option has a value that cannot be used."""


class FallbackWarning(UserWarning):
    """No PostgreSQL server serves, and an SQLite file is used instead."""


class ConnectionFailed(KimeraError):
    """No connection could be made; the message lists each attempt and its cause."""


class CommitUnknown(KimeraError, psycopg.OperationalError):
    """The connection was lost during COMMIT, or a write in autocommit; whether that took effect is not known."""


class NotInstalled(KimeraError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra that brings it."""


class InvalidValue(KimeraError, ValueError):
    """A value was refused before any SQL was sent; the message names the field and the fault."""


class VectorError(InvalidValue):
    """A vector has the wrong shape or type, or numbers that cosine distance cannot use."""


class WrongModel(InvalidValue):
    """The stored embeddings are of another model than the one that the caller goes by."""


class NotFound(KimeraError, LookupError):
    """No row has the id that was asked for."""


class InUse(KimeraError):
    """Rows cannot be deleted, because other rows refer to them."""


class SchemaError(KimeraError):
    """The database's schema is not the one that this version of kimera_sql needs."""


class QueryError(KimeraError):
    """A .sql file cannot be loaded, or has no query of that name."""


class CopyError(KimeraError):
    """A database cannot be copied into another, or did not arrive there as it was."""


class FileError(KimeraError):
    """A file cannot be read or written, or is not what its name says; the message says what became of it."""


class UnsupportedByServer(KimeraError):
    """The server, or its pgvector, is too old for what was asked, or it is SQLite, which has no such thing."""


class BackupError(KimeraError):
    """A backup could not be made, read or restored; the message says what was left as it was."""


class MaintenanceError(KimeraError):
    """Upkeep could not be done, or not all of it; the message says what was left undone and why."""
