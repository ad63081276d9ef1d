"""Score requests exactly: what they begin with alike computed once, the head applied only where a target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
import torch

from mpeval.errors import CheckpointError, DataError
from mpeval.heads import padded, score_headed
from mpeval.items import AnyRequest, AnyScore, Headed, Likelihoods, Masked, Request, Response, Scored
from mpeval.models.bert import BERT
from mpeval.models.cache import Cache
from mpeval.models.gpt import GPT
from mpeval.models.tree import Tree
from mpeval.parallel.vocab import TokenScores, token_scores
from mpeval.prefixes import Bundle, Costs, Row, bundles, join, preambles

__all__ = ["Masked", "Request", "Response", "score", "score_any", "score_batch", "score_masked", "token_batches"]

BATCH_TOKENS = {"cpu": 768, "cuda": 32768}
"""Input tokens per forward pass: on a CPU about one cache's worth of activations, on a GPU enough to fill it."""
ROW_TOKENS = 8192
"""Tokens of a row that several sequences share, at most: its mask holds their square."""
PAIR = 2.0
"""How much longer a FLOP of attention under a mask takes than one of a large matrix product."""
LOGITS_BYTES = {"cpu": 28 << 20, "cuda": 512 << 20}
"""The head works on as many positions at a time as keep one fp32 buffer of logits below this: on a CPU a block that the
C library keeps to give out again (larger ones it maps anew, page by page), on a GPU enough rows for a fast product."""


def tokens_at_once(device: torch.device) -> int:
    """Return how many input tokens a forward pass has by default."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])


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
    preamble = Preamble(model)
    for batch in pack(model, todo, batch_tokens)[0]:
        asked = [todo[item] for item in batch.requests]
        before = preamble.read(batch.preamble, asked[0])
        scored = score_batch(model, asked, rows=batch.rows, before=before, megatron_exact=megatron_exact)
        for item, result in zip(batch.requests, scored, strict=True):
            responses[item] = result.response
    return [response for response in responses if response is not None]


class Batch(NamedTuple):
    """What one forward pass scores."""

    requests: list[int]
    """Their numbers."""
    rows: list[int]
    """How many of their sequences, in order, stand in each row."""
    preamble: int = 0
    """How many tokens all sequences begin with, of other batches too: rows hold what comes after them."""


class Preamble:
    """Keys and values of what the sequences of one batch after the other begin with, computed once."""

    def __init__(self, model: GPT | BERT) -> None:
        """Hold none."""
        self.model = model
        self.ids = np.zeros(0, np.int64)
        self.cache: Cache | None = None

    @torch.inference_mode()
    def read(self, tokens: int, request: AnyRequest) -> Cache | None:
        """Return those of the first `tokens` of a batch's first request, read anew if the last batch's were others.

        None for no tokens.  Under tensor parallelism every rank calls this.
        """
        if not tokens or not isinstance(self.model, GPT):
            return None
        one, *_ = _asked(cast(Request | Likelihoods, request))
        ids = _fit(one, self.model.config.context)[0][:tokens]
        if self.cache is None or not np.array_equal(ids, self.ids):
            self.cache = None  # its memory goes before the next one's comes
            cache = Cache(self.model, 1, len(ids))
            row, length = padded([ids], self.model.group.device)
            cache.read(row, length, 0)
            self.ids, self.cache = ids, cache
        return self.cache


def pack(model: GPT | BERT, requests: Sequence[AnyRequest], batch_tokens: int | None) -> tuple[list[Batch], int]:
    """Return batches for `score_any`, and the input tokens of all requests; the budget suits the device.

    All sequences of a request are in one batch.  Those of a language model that begin alike share rows, where that is
    cheaper, and a preamble, where rows share one.  Batches of one preamble follow one another, longest rows first.
    """
    budget = batch_tokens or tokens_at_once(model.group.device)
    tokens = sum(min(length, model.config.context) for request in requests for length in request.lengths)
    if model.config.family == "gpt" and all(isinstance(request, Request | Likelihoods) for request in requests):
        asked = [_asked(cast(Request | Likelihoods, request)) for request in requests]
        sequences = [[_fit(one, model.config.context)[0][:-1] for one in row] for row in asked]
        spare = [
            min((len(ids) - len(one.target) for ids, one in zip(own, row, strict=True)), default=0)
            for own, row in zip(sequences, asked, strict=True)
        ]
        groups = preambles(sequences, bundles(sequences, _costs(model, batch_tokens)), spare)
    else:
        own_rows = [
            Bundle([n], [1] * len(request.lengths), list(request.lengths)) for n, request in enumerate(requests)
        ]
        groups = [(0, own_rows)]
    return [batch for preamble, made in groups for batch in _batches(made, preamble, budget)], tokens


def _batches(made: Sequence[Bundle], preamble: int, budget: int) -> list[Batch]:
    """Group bundles by what is left of their rows behind a preamble."""
    longest = [max(bundle.lengths, default=0) - preamble for bundle in made]
    return [
        Batch(
            [request for number in batch for request in made[number].requests],
            [sequences for number in batch for sequences in made[number].rows],
            preamble,
        )
        for batch in token_batches(longest, budget, [len(bundle.rows) for bundle in made])
    ]


def _asked(request: Request | Likelihoods) -> tuple[Request, ...]:
    return request.options if isinstance(request, Likelihoods) else (request,)


def _costs(model: GPT | BERT, batch_tokens: int | None) -> Costs:
    """Say when sequences share a row, from the FLOPs of a block: of its weights per token, of attention per pair."""
    config = model.config
    attention = config.heads * config.head_dim
    weights = config.hidden * (config.qkv_rows + attention + config.ffn * (3 if config.swiglu else 2))
    longest = batch_tokens or min(2 * config.context, ROW_TOKENS)
    return Costs(exchange=weights / (2 * attention * PAIR), longest=longest)


def score_any(
    model: GPT | BERT,
    requests: Sequence[AnyRequest],
    *,
    rows: Sequence[int] | None = None,
    before: Cache | None = None,
    megatron_exact: bool = False,
) -> Sequence[AnyScore]:
    """Score requests, all of one kind that the model can answer, in one forward pass.

    `rows` are how many sequences share each row, of a language model (default: each has its own), and `before` what
    all begin with.  `megatron_exact` is for language model heads: a task head has no padding rows.
    """
    kinds = {type(request) for request in requests}
    assert len(kinds) == 1, "requests of one batch are of one kind"
    if kinds == {Headed}:
        return score_headed(model, cast(Sequence[Headed], requests))
    if isinstance(model, BERT):
        assert kinds == {Masked}, "a BERT predicts masked tokens"
        return score_masked(model, cast(Sequence[Masked], requests), megatron_exact=megatron_exact)
    assert kinds <= {Request, Likelihoods}, "a GPT predicts next tokens"
    asked = [_asked(cast(Request | Likelihoods, request)) for request in requests]
    every = [one for row in asked for one in row]
    flat = score_batch(model, every, rows=rows, before=before, megatron_exact=megatron_exact)
    if kinds == {Request}:
        return flat
    scored = iter(flat)
    return [tuple(islice(scored, len(row))) for row in asked]


@torch.inference_mode()
def score_batch(
    model: GPT,
    requests: Sequence[Request],
    *,
    rows: Sequence[int] | None = None,
    before: Cache | None = None,
    megatron_exact: bool = False,
) -> list[Scored]:
    """Score requests in one forward pass, shorter rows padded on the right (causal: padding changes nothing).

    `rows` are how many requests, in order, share each row (default: each has its own); `before` holds keys and values
    of the tokens that all of them begin with.
    """
    fitted = [_fit(request, model.config.context) for request in requests]
    sequences = iter(row[before.capacity if before else 0 : -1] for row, _ in fitted)
    joined = [join(list(islice(sequences, count))) for count in rows or [1] * len(requests)]
    paths = [path for row in joined for path in row.paths]
    places = [path[len(path) - len(request.target) :] for path, request in zip(paths, requests, strict=True)]
    hidden = _hidden_at(model, joined, places, before)
    targets = torch.from_numpy(np.concatenate([np.asarray(request.target, dtype=np.int64) for request in requests]))
    vocab = _scored_vocab(model, megatron_exact)
    scores = _score_positions(
        model, lambda part: model.local_logits(part, vocab), hidden, targets.to(model.group.device)
    )
    return list(_cut_up(requests, [cut for _, cut in fitted], scores))


def _hidden_at(model: GPT, joined: Sequence[Row], places: Sequence[np.ndarray], before: Cache | None) -> torch.Tensor:
    """Run rows and return the vectors [n, hidden] at the places of each sequence, one after the other."""
    device = model.group.device
    ids, _ = padded([row.ids for row in joined], device)
    time = ids.shape[1]
    tree = _tree(joined, time, before.capacity if before else 0, device)
    keep = before.preamble if before else None
    sequences = iter(places)
    wanted = [np.concatenate(list(islice(sequences, len(row.paths)))) for row in joined]
    starts = np.arange(len(joined)) * time
    counts = np.array([len(own) for own in wanted])
    if 2 * len(joined) * counts.max() > len(joined) * time:
        flat = np.concatenate([own + start for own, start in zip(wanted, starts, strict=True)])
        return model.hidden(ids, torch.from_numpy(flat).to(device), tree, keep)
    # few places: as many of each row, so that the last block has no other queries
    at = np.repeat(starts[:, None], counts.max(), axis=1)
    for number, own in enumerate(wanted):
        at[number, : len(own)] += own
    found = model.hidden(ids, torch.from_numpy(at).to(device), tree, keep)
    return found[torch.from_numpy(np.arange(counts.max()) < counts[:, None]).to(device)]


def _tree(joined: Sequence[Row], time: int, before: int, device: torch.device) -> Tree | None:
    """Return what each token sees; None where every row is one sequence with nothing before it: causal attention."""
    if not before and all(len(row.paths) == 1 for row in joined):
        return None
    # a token of padding ends where it stands: it sees itself, and nothing of its row sees it
    ends = np.repeat(np.arange(1, time + 1)[None], len(joined), axis=0)
    for number, row in enumerate(joined):
        ends[number, : len(row.ends)] = row.ends
    positions, _ = padded([row.positions + before for row in joined], device)
    depth = before + max(len(path) for row in joined for path in row.paths)
    return Tree(positions, torch.from_numpy(ends).to(device), depth, before)


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
        model,
        lambda part: model.table_logits(model.lm_head.transform(part), vocab),
        hidden,
        torch.from_numpy(targets).to(device),
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
    buffer = LOGITS_BYTES.get(model.group.device.type, LOGITS_BYTES["cuda"])
    step = max(1, buffer // (4 * model.output_table.shape[0]))
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
