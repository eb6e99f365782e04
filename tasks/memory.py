"""Memory that is free, given back to the system: between pieces of work, where it costs milliseconds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def returning_memory(work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`work`, after which the C library's free memory goes back to the system.

    Workers are told to keep what they free, since that makes a forward pass 2.6 times faster; from one checkpoint to
    the next what they keep is too torn to be used again, and the process would grow with the length of a series.
    """

    @wraps(work)
    def then_trim(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return work(*args, **kwargs)
        finally:
            trim = _trim()
            if trim is not None:
                trim(0)

    return then_trim


@cache
def _trim() -> Any:
    """`malloc_trim` of the GNU C library; None on systems with another one."""
    with suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return None
