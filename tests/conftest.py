"""What all tests share: the way to data that lies beside the repository, and the warm-up of forked ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores compute side by side

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = (REPOSITORY / os.environ.get("MPEVAL_SHARED", "../shared")).resolve()
"""Checkpoints and benchmark data that are too large to keep here; `MPEVAL_SHARED` says where else they are."""


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Import what assert_close needs before ranks are forked: it costs each of them 0.6 s otherwise."""
    import torch

    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"`{folder}` is not there; set MPEVAL_SHARED to the folder that holds `{name}`")
    return folder


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Return the folder of checkpoints that Megatron-LM wrote, each with the logits it computes."""
    return _folder("fixtures")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of benchmark data."""
    return _folder("data")
