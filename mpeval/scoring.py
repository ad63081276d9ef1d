"""Score requests exactly: sorted by length, packed by token count, the head applied only where a target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch

from mpeval.errors import CheckpointError, DataError
from mpeval.heads import padded, score_headed
from mpeval.items import AnyRequest, AnyScore, Headed, Likelihoods, Masked, Request, Response, Scored
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.parallel.vocab import TokenScores, token_scores

__all__ = ["Masked", "Request", "Response", "score", "score_any", "score_batch", "score_masked", "token_batches"]

BATCH_TOKENS = {"cpu": 768, "cuda": 32768}
"""Input tokens per forward pass: on a CPU about one cache's worth of activations, on a GPU enough to fill it."""
LOGITS_BYTES = 128 << 20
"""The head works on as many positions at a time as keep one buffer of logits below this."""


def token_batches(lengths: Sequence[int], budget: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Group item numbers by length, longest first, so that rows x longest row stays within `budget` tokens.

    Every item is in exactly one batch; an item longer than the budget has a batch of its own.  `rows` are how many
    rows each item has, its `lengths` the longest of them (default: one each).
    """
    batches: list[list[int]] = []
    held = 0
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        own = rows[item] if rows is not None else 1
        if batches and lengths[batches[-1][0]] * (held + own) <= budget:
            batches[-1].append(item)
            held += own
        else:
            batches.append([item])
            held = own
    return batches


def score(
    model: GPT, requests: Iterable[Request], *, megatron_exact: bool = False, batch_tokens: int | None = None
) -> list[Response]:
    """Return (log-probability, greedy, tokens) of each request, in order.

    Args:
        model: from `load_model`; under tensor parallelism every rank calls this with the same requests.
        requests: contexts and targets; a request longer than the model's context loses tokens on its left.
        megatron_exact: let padding rows of the vocabulary into softmax and arg-max, as Megatron-LM does.
        batch_tokens: input tokens per forward pass (default by device).

    Log-probabilities are natural logarithms: softmax in fp32, sums in float64.
    """
    todo = list(requests)
    responses: list[Response | None] = [None] * len(todo)
    for batch in pack(model, todo, batch_tokens)[0]:
        scored = score_batch(model, [todo[item] for item in batch], megatron_exact=megatron_exact)
        for item, result in zip(batch, scored, strict=True):
            responses[item] = result.response
    return [response for response in responses if response is not None]


def pack(model: GPT | BERT, requests: Sequence[AnyRequest], batch_tokens: int | None) -> tuple[list[list[int]], int]:
    """Return batches of request numbers for `score_any`, and the input tokens of all; the budget suits the device.

    All sequences of a request are in one batch.
    """
    read = [[min(length, model.config.context) for length in request.lengths] for request in requests]
    budget = batch_tokens or BATCH_TOKENS.get(model.group.device.type, BATCH_TOKENS["cuda"])
    batches = token_batches([max(lengths, default=0) for lengths in read], budget, [len(lengths) for lengths in read])
    return batches, sum(map(sum, read))


def score_any(model: GPT | BERT, requests: Sequence[AnyRequest], *, megatron_exact: bool = False) -> Sequence[AnyScore]:
    """Score requests, all of one kind that the model can answer, in one forward pass.

    `megatron_exact` is for language model heads: a task head has no padding rows.
    """
    kinds = {type(request) for request in requests}
    assert len(kinds) == 1, "requests of one batch are of one kind"
    if kinds == {Headed}:
        return score_headed(model, cast(Sequence[Headed], requests))
    if isinstance(model, BERT):
        assert kinds == {Masked}, "a BERT predicts masked tokens"
        return score_masked(model, cast(Sequence[Masked], requests), megatron_exact=megatron_exact)
    if kinds == {Likelihoods}:
        return score_likelihoods(model, cast(Sequence[Likelihoods], requests), megatron_exact=megatron_exact)
    assert kinds == {Request}, "a GPT predicts next tokens"
    return score_batch(model, cast(Sequence[Request], requests), megatron_exact=megatron_exact)


def score_likelihoods(
    model: GPT, requests: Sequence[Likelihoods], *, megatron_exact: bool = False
) -> list[tuple[Scored, ...]]:
    """Score every option of every request in one forward pass; the options of one come back together."""
    scored = iter(
        score_batch(
            model, [option for request in requests for option in request.options], megatron_exact=megatron_exact
        )
    )
    return [tuple(next(scored) for _ in request.options) for request in requests]


@torch.inference_mode()
def score_batch(model: GPT, requests: Sequence[Request], *, megatron_exact: bool = False) -> list[Scored]:
    """Score requests in one forward pass, shorter ones padded on the right (causal: padding changes nothing)."""
    rows = [_fit(request, model.config.context) for request in requests]
    device = model.group.device
    ids, _ = padded([row[:-1] for row, _ in rows], device)
    places: list[np.ndarray] = []
    for number, ((row, _), request) in enumerate(zip(rows, requests, strict=True)):
        first = number * ids.shape[1] + len(row) - 1 - len(request.target)
        places.append(np.arange(first, first + len(request.target)))
    hidden = model.hidden(ids, torch.from_numpy(np.concatenate(places)).to(device))
    targets = torch.from_numpy(np.concatenate([np.asarray(request.target, dtype=np.int64) for request in requests]))
    vocab = _scored_vocab(model, megatron_exact)
    scores = _score_positions(model, lambda part: model.local_logits(part, vocab), hidden, targets.to(device))
    return list(_cut_up(requests, [cut for _, cut in rows], scores))


@torch.inference_mode()
def score_masked(model: BERT, requests: Sequence[Masked], *, megatron_exact: bool = False) -> list[Scored]:
    """Score the tokens behind masks in one forward pass, shorter requests padded on the right and padding masked.

    The head over the vocabulary, and what follows the last block's attention, see masked positions only.

    Raises:
        DataError: a request longer than the model's context, or without a masked token.
        CheckpointError: a log-probability that is not finite.
    """
    for request in requests:
        _check_masked(request, model.config.context)
    device = model.group.device
    ids, lengths = padded([request.ids for request in requests], device)
    places = np.concatenate([number * ids.shape[1] + request.at for number, request in enumerate(requests)])
    targets = np.concatenate([request.target for request in requests])
    hidden = model.encode(
        ids,
        padding_mask=torch.arange(ids.shape[1], device=device) < lengths[:, None],
        at=torch.from_numpy(places).to(device),
    )
    vocab = _scored_vocab(model, megatron_exact)
    scores = _score_positions(
        model, lambda part: _masked_logits(model, part, vocab), hidden, torch.from_numpy(targets).to(device)
    )
    return list(_cut_up(requests, [0] * len(requests), scores))


def _check_masked(request: Masked, context: int) -> None:
    if not len(request.target) or len(request.target) != len(request.at):
        raise DataError(
            f"a request of {len(request.at)} masks asks for {len(request.target)} tokens",
            "mask at least one token, and ask for one behind each mask",
        )
    if request.inputs > context:
        raise DataError(
            f"a request of {request.inputs} tokens does not fit the model's context of {context}",
            "score it with a model of longer context, or in windows",
        )


def _masked_logits(model: BERT, hidden: torch.Tensor, vocab: int) -> torch.Tensor:
    """Return this rank's logits of ids below `vocab` for vectors [n, hidden] after the final norm."""
    columns = model.columns(vocab)
    head = model.lm_head
    return torch.nn.functional.linear(head.transform(hidden), model.output_table[:columns], head.bias[:columns])


def _scored_vocab(model: GPT | BERT, megatron_exact: bool) -> int:
    return model.config.padded_vocab if megatron_exact else model.config.vocab


def _fit(request: Request, context: int) -> tuple[np.ndarray, int]:
    """Join context and target, cut on the left to what the model can read; return the tokens and how many went."""
    if not len(request.context) or not len(request.target):
        raise DataError(
            "a request needs at least one token of context and one of target",
            "begin an empty context with the end-of-text token",
        )
    if len(request.target) > context:
        raise DataError(
            f"a target of {len(request.target)} tokens does not fit the model's context of {context}",
            "score it with a model of longer context, or in windows",
        )
    row = np.concatenate([np.asarray(request.context, np.int64), np.asarray(request.target, np.int64)])
    cut = max(0, len(row) - 1 - context)
    return row[cut:], cut


def _score_positions(
    model: GPT | BERT, logits: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
) -> TokenScores:
    """Score targets [n] by `logits` of vectors [n, hidden], a part at a time."""
    step = max(1, LOGITS_BYTES // (4 * model.output_table.shape[0]))
    parts = [
        token_scores(
            logits(hidden[low : low + step]),
            targets[low : low + step],
            first=model.first_id,
            axis=model.group.tp,
        )
        for low in range(0, hidden.shape[0], step)
    ]
    return TokenScores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _cut_up(requests: Sequence[Request | Masked], cuts: Sequence[int], scores: TokenScores) -> Iterator[Scored]:
    """Give each request the scores of its targets; refuse scores that are no numbers."""
    logs, best = scores.log_probabilities.cpu().numpy(), scores.best.cpu().numpy()
    if not np.isfinite(logs).all():
        bad = int((~np.isfinite(logs)).sum())
        raise CheckpointError(
            f"the model gives {bad} of {len(logs)} tokens a log-probability that is not finite",
            "its activations overflow: use `--dtype float32` or `--dtype bfloat16`",
        )
    start = 0
    for request, cut in zip(requests, cuts, strict=True):
        stop = start + len(request.target)
        greedy = bool((best[start:stop] == np.asarray(request.target, np.int64)).all())
        yield Scored(log_probabilities=logs[start:stop], best=best[start:stop], greedy=greedy, cut=cut)
        start = stop
