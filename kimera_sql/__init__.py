"""SQL-first data layer for 1024-dimensional cognitive states in PostgreSQL with pgvector.

What is named here is imported when it is first used, so that the pytest plug-in, which every run of pytest loads, needs
neither numpy nor a database driver.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from . import embeddings as embeddings
    from . import geoids as geoids
    from . import metrics as metrics
    from . import portals as portals
    from . import transitions as transitions
    from .connect import open_pool as open_pool
    from .errors import BackupError as BackupError
    from .errors import CommitUnknown as CommitUnknown
    from .errors import ConnectionFailed as ConnectionFailed
    from .errors import CopyError as CopyError
    from .errors import FallbackWarning as FallbackWarning
    from .errors import FileError as FileError
    from .errors import InUse as InUse
    from .errors import InvalidValue as InvalidValue
    from .errors import KimeraError as KimeraError
    from .errors import MaintenanceError as MaintenanceError
    from .errors import NotFound as NotFound
    from .errors import NotInstalled as NotInstalled
    from .errors import QueryError as QueryError
    from .errors import SchemaError as SchemaError
    from .errors import SettingsError as SettingsError
    from .errors import UnsupportedByServer as UnsupportedByServer
    from .errors import VectorError as VectorError
    from .errors import WrongModel as WrongModel
    from .migrations import migrate as migrate
    from .ops.adoption import adopt as adopt
    from .pools import Pool as Pool
    from .pools import add_adapters as add_adapters
    from .retries import retry as retry
    from .search import indexes as indexes
    from .search import recall as recall
    from .settings import Settings as Settings
    from .sqlite import SqlitePool as SqlitePool

_PLACES: Final = {
    "embeddings": "embeddings",
    "geoids": "geoids",
    "metrics": "metrics",
    "portals": "portals",
    "transitions": "transitions",
    "open_pool": "connect",
    "BackupError": "errors",
    "CommitUnknown": "errors",
    "ConnectionFailed": "errors",
    "CopyError": "errors",
    "FallbackWarning": "errors",
    "FileError": "errors",
    "InUse": "errors",
    "InvalidValue": "errors",
    "KimeraError": "errors",
    "MaintenanceError": "errors",
    "NotFound": "errors",
    "NotInstalled": "errors",
    "QueryError": "errors",
    "SchemaError": "errors",
    "SettingsError": "errors",
    "UnsupportedByServer": "errors",
    "VectorError": "errors",
    "WrongModel": "errors",
    "migrate": "migrations",
    "adopt": "ops.adoption",
    "Pool": "pools",
    "add_adapters": "pools",
    "retry": "retries",
    "indexes": "search.indexes",
    "recall": "search.recall",
    "Settings": "settings",
    "SqlitePool": "sqlite",
}
"""Where each name is: the module that it is, or the one that has it."""

# An application that sets up no logging is told by exceptions alone.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _PLACES[name]
    module = importlib.import_module(f".{place}", __name__)
    value = module if place.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
