"""Numeric loops compiled at their first use, so that importing a module costs nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return numba's machine code of a plain function over numbers and arrays; it is kept on disk between processes."""
    import numba

    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder that may be written, neither beside the package nor in the home folder
        return numba.njit(function)  # type: ignore[no-any-return]
