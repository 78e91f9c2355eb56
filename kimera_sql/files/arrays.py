"""numpy's .npy and .npz: the vectors, with the other columns in a file of JSON Lines beside them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import FileError
from ..sql.plain import plain
from ..vectors import DIMENSIONS
from . import jsonlines
from .sources import Source

SUFFIXES: Final = (".npy", ".npz")

_AT_ONCE: Final = 256
"""Vectors that are read together."""

_SINGLE: Final = np.dtype("<f4")


def beside(path: Path) -> Path:
    """Return the file of the other columns."""
    return path.with_suffix(".jsonl")


def write(file: BinaryIO, others: BinaryIO, records: Iterable[Any], vector: str, total: int, *, zipped: bool) -> None:
    """Write the column *vector* of *records*, *total* in number, into *file*, and the other columns into *others*."""
    header = {"descr": _SINGLE.str, "fortran_order": False, "shape": (total, DIMENSIONS)}
    with ExitStack() as stack:
        array: IO[bytes] = file
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(file, "w"))
            array = stack.enter_context(archive.open(f"{vector}.npy", "w", force_zip64=True))
        npy.write_array_header_1_0(array, header)
        for record in records:
            values = plain(record)
            array.write(values.pop(vector).astype(_SINGLE, copy=False).tobytes())
            others.write(jsonlines.line(values))


@contextmanager
def source(path: Path, vector: str) -> Iterator[Source]:
    """Open the file *path*, and the one beside it, to be loaded. Raises FileError for anything but a plain array."""
    others = beside(path)
    if path.exists() and not others.exists():
        raise FileError(f"{path}: there is no {others.name} beside it, which has the columns that are no vectors")
    with ExitStack() as stack:
        lines = stack.enter_context(jsonlines.source(others))
        array: IO[bytes] = stack.enter_context(path.open("rb"))
        try:
            if path.suffix.lower() == ".npz":
                archive = stack.enter_context(zipfile.ZipFile(path))
                array = stack.enter_context(archive.open(_member(archive, vector)))
            shape, dtype = _header(array)
        except OSError:
            raise
        except Exception as error:  # zipfile and numpy raise a dozen others for what they do not know
            raise FileError(f"{path}: {error}; nothing was loaded") from error
        if shape[0] != lines.total:
            raise FileError(f"{path} has {shape[0]:,} vectors and {others.name} {lines.total:,} lines")
        yield Source(
            lines.total,
            zip(lines.rows, _rows(path, array, shape, dtype), strict=True),
            lambda row: {**jsonlines.parsed(row[0]), vector: row[1]},
        )


def _member(archive: zipfile.ZipFile, vector: str) -> str:
    names = archive.namelist()
    wanted = f"{vector}.npy" if len(names) > 1 else names[0] if names else ""
    if wanted not in names:
        raise ValueError(f"it has no array {vector}, but {', '.join(names) or 'nothing'}")
    return wanted


def _header(file: IO[bytes]) -> tuple[tuple[int, int], np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    # Objects are pickled, and a pickle can run code.
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise ValueError(f"expected an array of numbers with two dimensions, got {dtype} with shape {shape}")
    if fortran:
        raise ValueError("its columns are stored one after the other; save numpy.ascontiguousarray(...) of it")
    return (shape[0], shape[1]), dtype


def _rows(path: Path, file: IO[bytes], shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    width = shape[1] * dtype.itemsize
    for first in range(0, shape[0], _AT_ONCE):
        wanted = min(_AT_ONCE, shape[0] - first) * width
        try:
            data = file.read(wanted)
        except OSError:
            raise
        except Exception as error:  # as above, and each way of compressing has its own
            raise FileError(f"{path}: {error}; nothing was loaded") from error
        if len(data) < wanted:
            raise FileError(f"{path}: it ends after vector {first + len(data) // width:,}; nothing was loaded")
        yield from np.frombuffer(data, dtype).reshape(-1, shape[1])
