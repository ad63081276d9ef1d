"""Memory that a process keeps: the large temporaries of every step come from pages it already has."""

from __future__ import annotations

import ctypes
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>


def keep_memory() -> bool:
    """Make glibc keep freed memory, and take large blocks from it; tell whether this is done (Linux with glibc only).

    By default blocks above 32 MB are mapped anew whenever they are allocated, and free memory above 64 MB is given
    back: the kernel clears the same pages again in every step.  The process' memory then never shrinks.
    """
    if not (sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
