"""Freed memory is kept: after a while a large block costs no page fault any more."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from mpeval.train.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def use():
    torch.empty(16_000_000).fill_(1.0)
for _ in range(40):  # until the small blocks that get in between have found their places
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc whose habits are changed")
def test_large_blocks_are_used_again() -> None:
    def faults(mode: str) -> int:
        line = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert faults("keep") < faults("default") / 20
