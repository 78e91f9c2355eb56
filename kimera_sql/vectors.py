"""numpy arrays to and from pgvector's VECTOR and HALFVEC.

The wire formats are those of pgvector's vector_send and halfvec_send: two big-endian uint16 (the number of
dimensions, and zero), then the components as big-endian IEEE 754 floats.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pgvector
from numpy.typing import NDArray
from pgvector.psycopg import bit, halfvec, sparsevec, vector
from psycopg import DataError
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo

from .errors import VectorError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIMENSIONS = 1024
"""Dimensions of every stored vector."""

MAX_DIMENSIONS = 16_000
"""pgvector's limit of a VECTOR (VECTOR_MAX_DIM in its vector.h)."""

MIN_NORM, MAX_NORM = 1e-15, 1e18
"""Euclidean norms between which cosine distance is exact to single precision.

pgvector adds up squares in float32: beyond some 1e19 they overflow and below some 1e-22 they vanish, and the
distance is NaN (seen with 0.5.1 and 0.8.5), which would hide the row from every search.
"""

_LEAST_SQUARE, _GREATEST_SQUARE = MIN_NORM**2, MAX_NORM**2

_HEAD: Final = struct.Struct(">HH")
_SENT: Final = np.dtype(">f4")
_SENT_HALF: Final = np.dtype(">f2")
_SINGLE: Final = np.dtype(np.float32)

Vector: TypeAlias = NDArray[np.float32]
"""A vector as it comes back: float32, shape (1024,), read-only."""

VectorLike: TypeAlias = NDArray[np.floating[Any]] | Sequence[float] | pgvector.Vector | pgvector.HalfVector
"""What is taken for a vector: a numpy array of float16, float32 or float64, a list, a tuple, or pgvector's types."""


def as_vector(value: VectorLike, *, field: str = "vector", dimensions: int = DIMENSIONS) -> Vector:
    """Check *value* and return it as a read-only float32 array of shape (dimensions,).

    A float32 array that nobody can change is returned as it is. Anything else is copied, a read-only view of an array
    that can change too, so that later changes to *value* do not reach the result. float64 is rounded to float32.

    Raises VectorError, whose message begins with *field*, for a wrong type or shape, NaN, infinity, a number
    beyond float32, the zero vector, or a norm outside [MIN_NORM, MAX_NORM].
    """
    array = value if type(value) is np.ndarray else _as_array(value, field)
    if array.shape != (dimensions,):
        raise VectorError(f"{field}: expected shape ({dimensions},), got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise VectorError(f"{field}: expected real numbers, got dtype {array.dtype}")
    checked = array if _is_settled(array) else _readonly(_to_single(array))
    # One product finds NaN, infinity, zero and extreme norms alike. dot would warn of what overflows, vdot does not.
    if not _LEAST_SQUARE <= float(np.vdot(checked, checked)) <= _GREATEST_SQUARE:
        _refuse(array, field)
    return checked


def _as_array(value: VectorLike, field: str) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise VectorError(f"{field}: a masked array may lack components; fill or drop what is masked")
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (pgvector.Vector, pgvector.HalfVector)):
        return value.to_numpy()
    if not isinstance(value, (list, tuple)):
        raise VectorError(f"{field}: expected a numpy array, list or tuple, got {type(value).__name__}")
    try:
        return np.asarray(value)
    except ValueError:
        raise VectorError(f"{field}: its items are not all numbers") from None


def _to_single(array: NDArray[Any]) -> Vector:
    """Return a copy of *array* in single precision, with an infinity for what overflows."""
    if array.dtype == _SINGLE:
        return array.copy()
    with np.errstate(over="ignore"):
        return array.astype(_SINGLE)


def _readonly(array: Vector) -> Vector:
    array.setflags(write=False)
    return array


def _is_settled(array: NDArray[Any]) -> bool:
    """Return whether *array* is a float32 array in one piece that nobody can change: it, or the bytes that it views."""
    flags = array.flags
    if flags.writeable or array.dtype != _SINGLE or not flags.c_contiguous:
        return False
    return array.base is None or isinstance(array.base, bytes)


def _refuse(array: NDArray[Any], field: str) -> None:
    """Say which fault *array* has, if it has one once its norm is taken in double precision."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is reported below
        wide = array.astype(np.float64)
    for fault, found in (("NaN", np.isnan(wide)), ("an infinity", np.isinf(wide))):
        if found.any():
            raise VectorError(f"{field}: {fault} at index {int(found.argmax())}")
    too_big = np.abs(wide) > np.finfo(np.float32).max
    if too_big.any():
        at = int(too_big.argmax())
        raise VectorError(f"{field}: {float(wide[at])!r} at index {at} overflows single precision")
    norm = math.sqrt(float(np.dot(wide, wide)))
    if norm == 0:
        raise VectorError(f"{field}: the zero vector has no direction, so no cosine distance")
    if not MIN_NORM <= norm <= MAX_NORM:
        raise VectorError(
            f"{field}: norm {norm:g} is outside {MIN_NORM:g} to {MAX_NORM:g}, where single precision can give "
            "a cosine distance; scale the vector"
        )


def same(self: DataclassInstance, other: object) -> bool:
    """Compare two dataclasses of one type field by field, arrays by their numbers: an __eq__ for those with vectors."""
    if type(self) is not type(other):
        return False
    return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))


def _check_sent(array: NDArray[Any]) -> None:
    """Raise VectorError for an array that would lose a part of it on the way to the server."""
    if array.ndim != 1:
        raise VectorError(f"vector: expected one dimension, got shape {array.shape}")
    if array.dtype.kind not in "fiu" or isinstance(array, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"dtype {array.dtype}"
        raise VectorError(f"vector: expected real numbers, got {kind}")
    if array.size > MAX_DIMENSIONS:
        raise VectorError(f"vector: {array.size:,} dimensions; pgvector's VECTOR has at most {MAX_DIMENSIONS:,}")


def sent(array: NDArray[Any] | pgvector.Vector) -> bytes:
    """Return *array* as a VECTOR is sent in binary. Raises VectorError for an array that would lose a part of it."""
    if isinstance(array, pgvector.Vector):
        array = array.to_numpy()
    _check_sent(array)
    return b"".join((_HEAD.pack(array.size, 0), array.astype(_SENT).data))


def sent_alike(arrays: Sequence[Any]) -> list[memoryview] | None:
    """Return each of *arrays* as a VECTOR is sent behind its length; None unless all are float32 and of one size."""
    shape = np.shape(arrays[0])
    if len(shape) != 1 or shape[0] > MAX_DIMENSIONS:
        return None
    if not all(type(array) is np.ndarray and array.dtype == _SINGLE and array.shape == shape for array in arrays):
        return None
    return sent_block(np.array(arrays))


def sent_block(block: NDArray[np.float32]) -> list[memoryview]:
    """Return each row of *block* as a VECTOR is sent behind its length."""
    rows, dimensions = block.shape
    sent = np.empty((rows, 2 + dimensions), _SENT)
    sent[:, 2:] = block
    sent[:, :2].view(">u4")[:] = (4 + 4 * dimensions, dimensions << 16)
    width, data = sent.strides[0], sent.data.cast("B")
    return [data[start : start + width] for start in range(0, len(data), width)]


def are_storable(block: NDArray[np.float32]) -> bool:
    """Return whether as_vector would take every row of *block*."""
    squares = np.einsum("ij,ij->i", block, block)
    return bool(((squares >= _LEAST_SQUARE) & (squares <= _GREATEST_SQUARE)).all())


def _text(array: NDArray[Any]) -> bytes:
    _check_sent(array)
    # repr of a Python float is exact, and exact decimals survive the server's rounding to float32.
    return str(array.tolist()).encode()


class _VectorTextDumper(Dumper):
    format = Format.TEXT

    def dump(self, obj: NDArray[Any]) -> Buffer | None:
        return _text(obj)


class _VectorBinaryDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: NDArray[Any]) -> Buffer | None:
        return sent(obj)


class _TextLoader(Loader):
    format = Format.TEXT

    def load(self, data: Buffer) -> Vector:
        text = bytes(data)
        numbers = text[1:-1]
        size = numbers.count(b",") + 1
        if text[:1] + text[-1:] == b"[]" and size <= MAX_DIMENSIONS and not numbers.translate(None, b"0123456789.e+-,"):
            # By way of a double, 7.038531e-26 would become the float32 above the one that it stands for. numpy stops at
            # what is no number, and then misses the last one, which is ours.
            with suppress(ValueError, DeprecationWarning), np.errstate(over="ignore"):
                array = np.fromstring(numbers.decode() + ",0", dtype=np.longdouble, sep=",")[:-1].astype(np.float32)
                if array.size == size and np.isfinite(array).all():
                    return _readonly(array)
        raise DataError(f"the server sent {len(text):,} characters that are no vector")


class _VectorBinaryLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> Vector:
        return _received(data, _SENT)


class _HalfBinaryLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> Vector:
        return _received(data, _SENT_HALF)


def _received(data: Buffer, component: np.dtype[Any]) -> Vector:
    """Return the vector that *data* is in binary. Raises DataError for what pgvector does not send."""
    size = len(data)
    if size > _HEAD.size:
        dimensions, unused = _HEAD.unpack_from(data)
        if size == _HEAD.size + dimensions * component.itemsize and not unused and dimensions <= MAX_DIMENSIONS:
            array = np.frombuffer(data, component, dimensions, _HEAD.size).astype(_SINGLE)
            # The product is quick, and finite where all numbers are, unless it overflows.
            if math.isfinite(np.vdot(array, array)) or np.isfinite(array).all():
                return _readonly(array)
    raise DataError(f"the server sent {size:,} bytes that are no vector")


class _SparseTextLoader(Loader):
    format = Format.TEXT

    def load(self, data: Buffer) -> pgvector.SparseVector:
        text = bytes(data)
        # The client skips what should be brackets, and int and float take more than the server gives.
        if text[:1] == b"{" and b"}/" in text and not text.translate(None, b"0123456789.e+-,:{}/"):
            with suppress(ValueError):
                return _checked(pgvector.SparseVector.from_text(text.decode()))
        raise DataError(f"the server sent {len(text):,} characters that are no sparse vector")


class _SparseBinaryLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> pgvector.SparseVector:
        with suppress(ValueError, struct.error):
            return _checked(pgvector.SparseVector.from_binary(data))
        raise DataError(f"the server sent {len(data):,} bytes that are no sparse vector")


def _checked(vector: pgvector.SparseVector) -> pgvector.SparseVector:
    """Return *vector*. Raises ValueError unless its places are within it and in order, and its numbers are finite."""
    places = vector.indices()
    if not all(map(operator.lt, [-1, *places], [*places, vector.dimensions()])):
        raise ValueError(places)
    if not all(map(math.isfinite, vector.values())):
        raise ValueError(vector)
    return vector


@functools.cache
def _of_type(dumper: type[Dumper], oid: int) -> type[Dumper]:
    """Return *dumper* for the server's type *oid*. Cached, because a class for each connection would never be freed."""
    return type(dumper.__name__, (dumper,), {"oid": oid})


# What is sent as each type, and how it comes back; binary last, as psycopg prefers the last one. The types are those of
# the pgvector client. numpy arrays, VECTOR and HALFVEC are ours: see benchmarks/adapters.py.
_DUMPERS: Final[Mapping[str, Sequence[tuple[type, type[Dumper], type[Dumper]]]]] = {
    "vector": (
        (pgvector.Vector, vector.VectorDumper, vector.VectorBinaryDumper),
        (np.ndarray, _VectorTextDumper, _VectorBinaryDumper),
    ),
    "halfvec": ((pgvector.HalfVector, halfvec.HalfVectorDumper, halfvec.HalfVectorBinaryDumper),),
    "sparsevec": ((pgvector.SparseVector, sparsevec.SparseVectorDumper, sparsevec.SparseVectorBinaryDumper),),
    "bit": ((pgvector.Bit, bit.BitDumper, bit.BitBinaryDumper),),
}
_LOADERS: Final[Mapping[str, tuple[type[Loader], type[Loader]]]] = {
    "vector": (_TextLoader, _VectorBinaryLoader),
    "halfvec": (_TextLoader, _HalfBinaryLoader),
    "sparsevec": (_SparseTextLoader, _SparseBinaryLoader),
}

TYPES: Final = tuple(_DUMPERS)
"""The names of the server's types that register wants to know; the last one is PostgreSQL's own."""


def register(context: AdaptContext, types: Iterable[TypeInfo]) -> None:
    """Teach *context* (a connection, as a rule) those of the server's TYPES that it has.

    numpy arrays and pgvector.Vector are then sent as VECTOR, pgvector.HalfVector as HALFVEC, SparseVector as SPARSEVEC
    and Bit as BIT. VECTOR and HALFVEC come back as read-only float32 arrays, through the binary and the text protocol.
    """
    for info in types:
        info.register(context)
        for python_type, *dumpers in _DUMPERS[info.name]:
            for dumper in dumpers:
                context.adapters.register_dumper(python_type, _of_type(dumper, info.oid))
        for loader in _LOADERS.get(info.name, ()):
            context.adapters.register_loader(info.oid, loader)


def keep_loaders(cursor: AdaptContext) -> None:
    """Let *cursor* give arrays even where somebody has registered other loaders on its connection since."""
    adapters = cursor.adapters
    info = adapters.types.get("vector")
    if info is None or adapters.get_loader(info.oid, Format.BINARY) is _VectorBinaryLoader:
        return
    for name in ("vector", "halfvec"):
        if (info := adapters.types.get(name)) is not None:
            for loader in _LOADERS[name]:
                adapters.register_loader(info.oid, loader)
