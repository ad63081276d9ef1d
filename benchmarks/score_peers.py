"""The scorers that `score_vs_peers.py` compares with, each as a function of the same pairs of token ids."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

Pair = tuple[list[int], list[int]]
"""Context and target."""
Answers = list[tuple[float, bool]]
"""Log-probability of each target, and whether it is greedy."""


def harness(model: Any, pairs: list[Pair], batch: int, context: int) -> Callable[[], Answers]:
    """Return lm-eval's `hf` backend around a transformers model; tokens are passed in, so any tokenizer does."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=context, device="cpu")
    asked = [(("", ""), *pair) for pair in pairs]
    return lambda: lm._loglikelihood_tokens(asked, disable_tqdm=True)


def transformers_loop(model: Any, pairs: list[Pair]) -> Callable[[], Answers]:
    """Return the loop that people write: one window at a time, softmax over the logits of the targets."""

    @torch.inference_mode()
    def run() -> Answers:
        answers: Answers = []
        for before, after in pairs:
            ids = torch.tensor([[*before, *after]])
            logits = model(ids[:, :-1]).logits[0, -len(after) :].float()
            target = torch.tensor(after)
            logs = torch.log_softmax(logits, dim=-1).gather(-1, target[:, None])
            answers.append((logs.double().sum().item(), bool((logits.argmax(-1) == target).all())))
        return answers

    return run


def ctranslate2(model: Any, pairs: list[Pair], context: int) -> Callable[[], Answers] | None:
    """Return CTranslate2's `score_batch` in fp32 at 1,024 tokens a batch, or None where it is not installed.

    It scores every token of a sequence and says nothing of the greedy one, so that column repeats what it cannot know:
    false.
    """
    try:
        import ctranslate2 as library
    except ImportError:
        return None
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{number}": number for number in range(model.config.vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="t0", bos_token="t0", unk_token="t0")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/from")
        tokenizer.save_pretrained(f"{folder}/from")
        library.converters.TransformersConverter(f"{folder}/from").convert(f"{folder}/to")
        generator = library.Generator(f"{folder}/to", device="cpu", intra_threads=torch.get_num_threads())
    rows = [[f"t{token}" for token in [*before, *after][-context - 1 :]] for before, after in pairs]

    def run() -> Answers:
        scored = generator.score_batch(rows, max_batch_size=1024, batch_type="tokens", max_input_length=0)
        return [(sum(one.log_probs[-len(after) :]), False) for one, (_, after) in zip(scored, pairs, strict=True)]

    return run
