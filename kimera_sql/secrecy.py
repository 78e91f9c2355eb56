"""Passwords are kept out of reprs, copies, pickles, and the variables that an error's traceback holds on to."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Secret:
    """A text that shows itself as ***. reveal() gives it; it equals the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, Secret) else other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a password cannot be pickled; read the settings anew in the other process: Settings.from_env()"
        )


def hide(value: str | Secret) -> Secret:
    """Return *value* as a Secret."""
    return value if isinstance(value, Secret) else Secret(value)


def reveal(value: str | Secret) -> str:
    """Return *value* as a text."""
    return value.reveal() if isinstance(value, Secret) else value


def forgetful(function: Callable[P, T]) -> Callable[P, T]:
    """Make *function*, a coroutine function or a plain one, forget its variables when it fails.

    Reporters of errors send the variables of every frame of a traceback somewhere.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exc_info()[1]
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                del args, kwargs
                forget(error, handled)
                raise

        return awaited  # type: ignore[return-value]

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        handled = sys.exc_info()[1]
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget(error, handled)
            raise

    return called


def forget(error: BaseException | None, handled: BaseException | None) -> None:
    """Clear the variables of the frames that *error* and what led to it came through, up to *handled*.

    What `from` has hidden is dropped: a traceback does not show it, and a reporter of errors would.
    """
    while error is not None and error is not handled:
        traceback.clear_frames(error.__traceback__)
        if error.__suppress_context__:
            error.__context__ = error.__cause__
        error = error.__context__
