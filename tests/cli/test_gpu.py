"""The same numbers on GPUs as on the CPU; skipped, by name, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
NEEDS_TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs (NCCL)")


def samples(output: Path, *options: str) -> dict[str, float]:
    """Evaluate the demo checkpoint on the sample rows and return the log-probability of each item."""
    checkpoint = str(ROOT / "checkpoints/demo-gpt")
    command = [sys.executable, "-m", "mpeval", "evaluate", checkpoint, "--task", "lambada"]
    command += ["--data", str(ROOT / "tasks/samples"), "--output", str(output), "--quiet", *options]
    subprocess.run(command, check=True, timeout=200)
    lines = (output / "samples.jsonl").read_text().splitlines()
    return {sample["id"]: sample["log_probability"] for sample in map(json.loads, lines)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--device", "cuda"], id="one GPU", marks=NEEDS_GPU),
        pytest.param(["--device", "cuda", "--tp", "2"], id="tp 2 over NCCL", marks=NEEDS_TWO),
        pytest.param(["--device", "cuda", "--dp", "2"], id="dp 2 over NCCL", marks=NEEDS_TWO),
    ],
)
def test_a_gpu_gives_the_numbers_of_the_cpu(options: list[str], tmp_path: Path) -> None:
    expected = samples(tmp_path / "cpu", "--device", "cpu")
    found = samples(tmp_path / "gpu", *options)
    assert found.keys() == expected.keys()
    for item, log_probability in expected.items():
        assert found[item] == pytest.approx(log_probability, abs=5e-3)
