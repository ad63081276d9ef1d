"""Continue prompts token by token, greedily or by drawing, with a key-value cache; the same on any tensor ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from mpeval.errors import CheckpointError, DataError, UsageError
from mpeval.heads import padded
from mpeval.models.cache import Cache, bytes_per_token
from mpeval.models.gpt import GPT
from mpeval.parallel.draw import drawn_tokens
from mpeval.parallel.vocab import best_tokens
from mpeval.scoring import token_batches, tokens_at_once

CACHE_BYTES = {"cpu": 512 << 20, "cuda": 8 << 30}
"""Keys and values that are kept at a time: so many prompts are continued together."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: from softmax(logits / temperature), cut to the `top_k` best ids, then to `top_p`."""

    temperature: float = 1.0
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    """1: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no distribution has."""
        for name, good, wanted in (
            ("temperature", self.temperature > 0, "above 0; without sampling the most likely token is taken"),
            ("top_k", self.top_k >= 0, "1 or more, or 0 for all"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not good:
                raise UsageError(f"`{name}={getattr(self, name)}` cannot be sampled with", f"give a value {wanted}")


class Generated(NamedTuple):
    """What a model goes on with: ids, and why they end (the end-of-text token, which is not among them, or `stop`)."""

    ids: list[int]
    reason: Literal["end", "stop", "length"]


Stop = Callable[[Sequence[int]], bool]


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    end: int | None = None,
    sampling: Sampling | None = None,
    stop: Stop | None = None,
    streams: Sequence[tuple[int, ...]] | None = None,
) -> list[Generated]:
    """Continue every prompt by up to `limit` tokens; return what comes after each, in order.

    Args:
        model: in evaluation mode; under tensor parallelism every rank calls this with the same arguments.
        prompts: token ids, at least one each; with `limit` they fit the model's context.
        limit: new tokens, at most.
        end: the id that ends a text.
        sampling: how to draw; None takes the most likely token, the lowest id of equals.
        stop: tells of the new ids so far whether they are enough.
        streams: names each prompt's random numbers besides the seed (default: its place).  Draws depend on nothing
            else, so not on the prompts it is continued with.

    Raises:
        DataError: a prompt is empty, or does not fit.
        CheckpointError: logits that are no numbers.
    """
    for prompt in prompts:
        if not len(prompt) or limit < 1 or len(prompt) + limit > model.config.context:
            raise DataError(
                f"a prompt of {len(prompt)} tokens and {limit} new ones do not fit a context of {model.config.context}",
                "a prompt has one token at least: cut it on the left, or ask for fewer new ones",
            )
    device = model.group.device.type
    room = CACHE_BYTES.get(device, CACHE_BYTES["cuda"]) // bytes_per_token(model)
    found: dict[int, Generated] = {}
    for batch in token_batches([len(prompt) + limit for prompt in prompts], room):
        uniforms = None
        if sampling:
            names = [streams[number] if streams else (number,) for number in batch]
            draws = [np.random.default_rng([sampling.seed, *name]).random(limit) for name in names]
            uniforms = torch.from_numpy(np.stack(draws))
        chooser = _Chooser(model, sampling, uniforms)
        going = _Going(model, [prompts[number] for number in batch], limit, end, stop)
        found.update(zip(batch, going.run(chooser), strict=True))
    return [found[number] for number in range(len(prompts))]


class _Chooser:
    """Chooses next tokens, the same on all tensor ranks."""

    def __init__(self, model: GPT, sampling: Sampling | None, uniforms: torch.Tensor | None) -> None:
        self.model, self.sampling, self.uniforms = model, sampling, uniforms

    def __call__(self, hidden: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
        """Return ids [n] that follow vectors [n, hidden] of `rows` of the batch."""
        model, sampling = self.model, self.sampling
        logits = model.local_logits(hidden)
        if sampling is None or self.uniforms is None:
            ids = best_tokens(logits, first=model.first_id, axis=model.group.tp)
        else:
            ids = drawn_tokens(
                logits,
                self.uniforms[list(rows), step],
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                first=model.first_id,
                width=model.output_table.shape[0],
                axis=model.group.tp,
            )
        if bool((ids >= model.config.vocab).any()) or not bool(hidden.isfinite().all()):
            raise CheckpointError(
                "the model's logits are no numbers", "its activations overflow: use `--dtype float32` or bfloat16"
            )
        return ids


class _Going:
    """One batch of prompts that are continued together; a row leaves when its text has ended."""

    def __init__(
        self, model: GPT, prompts: Sequence[Sequence[int]], limit: int, end: int | None, stop: Stop | None
    ) -> None:
        self.prompts, self.limit, self.end, self.stop = prompts, limit, end, stop
        self.model = model
        self.cache = Cache(model, len(prompts), max(map(len, prompts)) + limit)
        self.new: list[list[int]] = [[] for _ in prompts]
        self.reasons: list[Literal["end", "stop", "length"]] = ["length"] * len(prompts)

    def run(self, choose: _Chooser) -> list[Generated]:
        """Read the prompts, then go on until every row has ended."""
        device = self.model.group.device
        rows = list(range(len(self.prompts)))
        positions = torch.tensor([len(prompt) for prompt in self.prompts], device=device)
        hidden = self._read()
        for step in range(self.limit):
            ids = choose(hidden, rows, step)
            stays = [
                place
                for place, (row, token) in enumerate(zip(rows, ids.tolist(), strict=True))
                if self._add(row, token)
            ]
            if not stays or step + 1 == self.limit:
                break
            if len(stays) < len(rows):
                kept = torch.tensor(stays, device=device)
                self.cache.select(kept)
                rows, ids, positions = [rows[place] for place in stays], ids[kept], positions[kept]
            hidden = self.cache.step(ids, positions)
            positions = positions + 1
        return [Generated(ids, reason) for ids, reason in zip(self.new, self.reasons, strict=True)]

    def _read(self) -> torch.Tensor:
        """Read all prompts, some at a time; rows are sorted by length, so parts of them follow one another."""
        device = self.model.group.device
        parts = []
        for part in token_batches([len(prompt) for prompt in self.prompts], tokens_at_once(device)):
            assert part == list(range(part[0], part[0] + len(part))), "prompts come longest first"
            ids, lengths = padded([np.asarray(self.prompts[row], np.int64) for row in part], device)
            parts.append(self.cache.read(ids, lengths, part[0]))
        return torch.cat(parts)

    def _add(self, row: int, token: int) -> bool:
        """Add a token to a row, and tell whether the row goes on."""
        if token == self.end:
            self.reasons[row] = "end"
            return False
        self.new[row].append(token)
        if self.stop is not None and self.stop(self.new[row]):
            self.reasons[row] = "stop"
            return False
        return True
