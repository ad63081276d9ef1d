"""A GPT as lm-eval sees a language model: strings in; log-probabilities, or strings, out."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from lm_eval.api.model import TemplateLM

from mpeval.errors import DataError, UsageError
from mpeval.generate import generate
from mpeval.harness.answers import Answers, key_of
from mpeval.harness.pairs import encode_all, encode_pairs, rolling_windows
from mpeval.harness.settings import Continuation
from mpeval.items import Request
from mpeval.models.gpt import GPT
from mpeval.parallel.group import gather_objects
from mpeval.parallel.ops import all_gathered
from mpeval.report import Advance, progress
from mpeval.scoring import score
from mpeval.tokenizer import Tokenizer, special_tokens

CHUNK = 1024
"""Requests handed to the engine at a time, in their order: near ones share prefixes.  A killed run loses no more."""
SEED = 1234
"""What random continuations start from, lm-eval's own number."""
NEW_TOKENS = 256
"""How far a text is continued where the task does not say; at most half the model's context."""
logger = logging.getLogger("mpeval.harness")


class LanguageModel(TemplateLM):  # type: ignore[misc]
    """Any GPT; in a tensor-parallel group each rank says it is rank 0 of 1, of data-parallel ones which it is.

    Attributes:
        cut: tokens that a request lost on its left because it did not fit, by (task, document).
        tokens: input tokens read, by task, without those of answers that were there already.
        asked: the (task, document) that had no answer yet.
        seconds: time spent in the engine.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int | None = None,
        max_gen_toks: int | None = None,
        seed: int = SEED,
        answers: Answers | None = None,
        shown: bool = True,
    ) -> None:
        """Wrap a model in evaluation mode.

        Args:
            model: this rank's shard.
            tokenizer: the model's own.
            batch_tokens: input tokens per forward pass (default by device).
            max_gen_toks: new tokens where a task does not say how many.
            seed: of random continuations.
            answers: of earlier runs, and where to write new ones (default: nowhere).
            shown: whether a terminal gets a progress bar.
        """
        super().__init__()
        group = model.group
        self.model, self.text = model, tokenizer
        self.batch_tokens, self.seed = batch_tokens, seed
        self.max_gen_toks = max_gen_toks or min(NEW_TOKENS, model.config.context // 2)
        self.shown = shown and group.world.rank == 0
        self.answers = answers or Answers()
        self.cut: dict[tuple[str, int], int] = {}
        self.tokens: Counter[str] = Counter()
        self.asked: set[tuple[str, int]] = set()
        self.seconds = 0.0
        self._rank, self._world_size, self._device = group.dp.rank, group.dp.ranks, group.device
        self._begin, self._end = special_tokens(tokenizer)

    # ---- what lm-eval asks of any model ----

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context: what begins a text if there is one, else what ends it."""
        return self._begin

    @property
    def max_length(self) -> int:
        """Tokens the model reads."""
        return self.model.config.context

    @property
    def tokenizer_name(self) -> str:
        """What the tokenizer is known by: its digest."""
        return self.text.digest.replace(":", "-")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text; none are added."""
        del add_special_tokens
        return self.text.encode(string)

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Return the text of ids."""
        return self.text.decode(tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refuse: these checkpoints bring no template.

        Raises:
            UsageError: always.
        """
        del chat_history, add_generation_prompt
        raise UsageError(
            f"the tokenizer in `{self.text.path}` has no chat template", "leave out `--apply_chat_template`"
        )

    def all_gather(self, tensor: Any) -> Any:
        """Return the tensors of all data-parallel ranks, in one."""
        return all_gathered(tensor.reshape(-1) if tensor.ndim == 0 else tensor, self.model.group.dp, 0)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return the objects of all data-parallel ranks, on rank `dst`."""
        found = gather_objects(obj, self.model.group.dp)
        return found if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for all data-parallel ranks."""
        gather_objects(None, self.model.group.dp)

    # ---- log-probabilities ----

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability, whether it is greedy) of each continuation given its context."""
        texts = [request.args for request in requests]
        pairs = encode_pairs(self.text, texts, self.prefix_token_id)
        with self._noting("scored"):
            for request, pair in zip(requests, pairs, strict=True):
                self._note(request, key_of(*pair), sum(map(len, pair)) - 1, self.max_length)
        tokens = [(text, *pair) for text, pair in zip(texts, pairs, strict=True)]
        return self._loglikelihood_tokens(tokens, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Score tokens given tokens; with each the texts they came from, for lm-eval's cache, or None."""
        keys = [key_of(context, target) for _, context, target in requests]
        todo = self.answers.missing(keys)
        with self._timed("log-probabilities", len(requests), disable_tqdm) as advance:
            advance(len(requests) - len(todo), 0)
            for low in range(0, len(todo), CHUNK):
                part = todo[low : low + CHUNK]
                asked = [Request(context=requests[place][1], target=requests[place][2]) for place in part]
                scored = score(self.model, asked, batch_tokens=self.batch_tokens)
                self.answers.add({keys[place]: list(found[:2]) for place, found in zip(part, scored, strict=True)})
                advance(len(part), sum(min(request.inputs, self.max_length) for request in asked))
        answers = []
        for (texts, _context, _target), key in zip(requests, keys, strict=True):
            log_probability, greedy = self.answers.known[key]
            answers.append((float(log_probability), bool(greedy)))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, read through windows that do not overlap."""
        ids = encode_all(self.text, (request.args[0] for request in requests))
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            made = list(rolling_windows(ids[request.args[0]], self.prefix_token_id, self.max_length))
            windows += [(None, *window) for window in made]
            counts.append(len(made))
            for window in made:
                self._note(request, key_of(*window), sum(map(len, window)) - 1, self.max_length)
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [float(sum(next(scores)[0] for _ in range(count))) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # ---- continuations ----

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model goes on with after each context, up to the first stop string."""
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        found: dict[int, str] = {}
        with self._timed("continuations", len(requests), disable_tqdm) as advance, self._noting("continued"):
            for numbers in alike.values():
                same = [requests[number] for number in numbers]
                texts = self._continue(same, Continuation.of(same[0].args[1], self.max_gen_toks, self.seed), advance)
                found.update(zip(numbers, texts, strict=True))
        return [found[number] for number in range(len(requests))]

    def _continue(self, requests: list[Any], wanted: Continuation, advance: Advance) -> list[str]:
        """Continue the contexts of requests with equal settings, those of a chunk together."""
        longest = self.max_length - wanted.limit
        if longest < 1:
            raise DataError(
                f"`{requests[0].task_name}` asks for {wanted.limit} new tokens, the model's context is "
                f"{self.max_length}",
                "ask for fewer by `max_gen_toks` in the task's `generation_kwargs`",
            )
        until = [*wanted.until, self.text.decode([self.eot_token_id])]
        ids = encode_all(self.text, (request.args[0] for request in requests))
        prompts, streams, keys = [], [], []
        seen: Counter[tuple[int, ...]] = Counter()
        for request in requests:
            prompt = ids[request.args[0]] or [self.prefix_token_id]
            name = (crc32(str(request.task_name).encode()), int(request.doc_id or 0), int(request.idx or 0))
            prompts.append(prompt[-longest:])
            streams.append((*name, seen[name]) if wanted.sampling else ())  # one that comes again is drawn anew
            seen[name] += 1
            keys.append(key_of(prompts[-1], wanted.limit, until, repr(wanted.sampling), streams[-1]))
            self._note(request, keys[-1], len(prompt), longest)
        todo = self.answers.missing(keys)
        advance(len(requests) - len(todo), 0)
        for low in range(0, len(todo), CHUNK):
            part = todo[low : low + CHUNK]
            made = generate(
                self.model,
                [prompts[place] for place in part],
                limit=wanted.limit,
                end=self.eot_token_id,
                sampling=wanted.sampling,
                stop=wanted.stopper(self.text, until),
                streams=[streams[place] for place in part],
            )
            texts = [wanted.ended(self.text.decode(generated.ids), until) for generated in made]
            self.answers.add({keys[place]: text for place, text in zip(part, texts, strict=True)})
            advance(len(part), sum(len(generated.ids) for generated in made))
        found = [str(self.answers.known[key]) for key in keys]
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    # ---- what is kept of requests ----

    @contextmanager
    def _timed(self, title: str, total: int, disabled: bool) -> Iterator[Advance]:
        begin = time.perf_counter()
        with progress(title, total, shown=self.shown and not disabled) as advance:
            yield advance
        self.seconds += time.perf_counter() - begin

    def _note(self, request: Any, key: str, inputs: int, room: int) -> None:
        """Count a request's tokens, and those it loses because it has more than there is `room` for."""
        document = (str(request.task_name), int(request.doc_id or 0))
        if key not in self.answers.earlier:
            self.asked.add(document)
            self.tokens[document[0]] += min(inputs, room)
        if inputs > room:
            self.cut[document] = max(self.cut.get(document, 0), inputs - room)

    @contextmanager
    def _noting(self, verb: str) -> Iterator[None]:
        """Say once how many documents lost tokens meanwhile."""
        before = len(self.cut)
        yield
        if len(self.cut) > before:
            logger.warning(
                "%d documents are %s without the left of their context: it is longer than the model's %d tokens",
                len(self.cut) - before,
                verb,
                self.max_length,
            )
