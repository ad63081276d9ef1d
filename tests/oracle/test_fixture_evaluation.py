"""`mpeval evaluate` on checkpoints that Megatron-core wrote, against its own logits' log-softmax."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.items import Request
from mpeval.scoring import score

_WORDS = "the cat sat on a mat and then it ran to red old big house near water while some birds sang"
WORDS = _WORDS.split()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a 250-token BPE and 24 LAMBADA-format rows that fit 64 positions."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = random.Random(0)
    rows = [" ".join(generator.choices(WORDS, k=generator.randint(3, 24))) for _ in range(24)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(rows, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    spare = [f"<spare-{number}>" for number in range(250 - tokenizer.get_vocab_size())]
    tokenizer.add_tokens(spare)
    assert tokenizer.get_vocab_size() == 250
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "lambada_test.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def evaluate(checkpoint: Path, inputs: Path, output: Path, *ranks: str) -> list[dict[str, Any]]:
    """Run the command and return its samples."""
    command = [sys.executable, "-m", "mpeval", "evaluate", str(checkpoint), "--task", "lambada", "--data", str(inputs)]
    command += ["--tokenizer", str(inputs), "--allow-modified-data", "--device", "cpu", "--batch-tokens", "100"]
    subprocess.run([*command, "--output", str(output), "--quiet", *ranks], check=True, timeout=120)
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("dp", [1, 2])
def test_every_layout_gives_the_same_result_for_every_item(
    shared_fixtures: Path, inputs: Path, tmp_path: Path, tp: int, dp: int
) -> None:
    checkpoint = shared_fixtures / "gpt-mcore-tp2"
    samples = evaluate(checkpoint, inputs, tmp_path / "run", "--tp", str(tp), "--dp", str(dp))
    assert [sample["id"] for sample in samples] == [f"{number:05d}" for number in range(24)]
    model = load_model(open_checkpoint(checkpoint))
    tokenizer = Tokenizer.from_file(str(inputs / "tokenizer.json"))
    for sample, line in zip(samples, (inputs / "lambada_test.jsonl").read_text().splitlines(), strict=True):
        context, _, word = json.loads(line)["text"].rpartition(" ")
        before, target = tokenizer.encode(context).ids, tokenizer.encode(" " + word).ids
        log_probability, greedy = reference(model, before, target)
        assert sample["tokens"] == len(target)
        assert sample["log_probability"] == pytest.approx(log_probability, abs=1e-4)
        assert sample["greedy"] == sample["correct"] == greedy


def reference(model: torch.nn.Module, context: list[int], target: list[int]) -> tuple[float, bool]:
    """Score one target by a plain log-softmax over the model's full logits."""
    ids = torch.tensor([context + target])
    logs = torch.log_softmax(model(ids[:, :-1])[0, -len(target) :].double(), dim=-1)
    picked = logs.gather(-1, torch.tensor(target)[:, None]).sum().item()
    return picked, logs.argmax(-1).tolist() == target


@pytest.mark.parametrize("name", ["gpt-mcore-tp2", "gpt-mcore-tp2-pp2", "gpt-legacy-v2-tp2"])
def test_scores_equal_the_log_softmax_of_the_logits_that_megatron_computed(shared_fixtures: Path, name: str) -> None:
    stored = torch.load(shared_fixtures / name / "reference.pt", weights_only=True)
    model = load_model(open_checkpoint(shared_fixtures / name))
    logs = torch.log_softmax(stored["logits"].double(), dim=-1)
    requests, expected = [], []
    for row, tokens in enumerate(stored["tokens"].tolist()):
        for first, last in ((1, 64), (10, 12), (40, 64), (63, 64)):
            requests.append(Request(context=tokens[:first], target=tokens[first:last]))
            at = torch.arange(first - 1, last - 1)
            picked = logs[row, at, torch.tensor(tokens[first:last])].sum().item()
            expected.append((picked, logs[row, at].argmax(-1).tolist() == tokens[first:last]))
    for response, (log_probability, greedy) in zip(score(model, requests), expected, strict=True):
        assert response.log_probability == pytest.approx(log_probability, abs=1e-3)
        assert response.greedy == greedy


def test_megatron_exact_lets_the_six_padding_rows_into_the_softmax(shared_fixtures: Path) -> None:
    checkpoint = open_checkpoint(shared_fixtures / "gpt-mcore-tp2")
    model = load_model(checkpoint)
    request = Request(context=[5, 6, 7], target=[8])
    hidden = model.hidden(torch.tensor([[5, 6, 7]]))[0, -1]
    everything = torch.log_softmax(model.local_logits(hidden, vocab=256).double(), dim=-1)
    [exact] = score(model, [request], megatron_exact=True)
    [masked] = score(model, [request])
    assert exact.log_probability == pytest.approx(everything[8].item(), abs=1e-5)
    assert masked.log_probability > exact.log_probability
