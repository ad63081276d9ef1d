"""From a card to the code that runs it: the only place that lists every task."""

from __future__ import annotations

from collections.abc import Callable

from mpeval.data import Data
from mpeval.tasks.base import Task
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.cloze import Lambada
from mpeval.tasks.masked import MaskedWikiText
from mpeval.tasks.perplexity import WikiText
from mpeval.tokenizer import Tokenizer

TaskBuilder = Callable[[Card, Protocol, Data, Tokenizer, int], Task]
BUILDERS: dict[tuple[str, str], TaskBuilder] = {
    ("cloze", "gpt"): Lambada,
    ("perplexity", "gpt"): WikiText,
    ("perplexity", "bert"): MaskedWikiText,
}
"""Which class runs a card of which kind under a protocol for which family."""


def build_task(card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> Task:
    """Tokenize `data` for `protocol`; `context` is the longest input the model reads, in tokens."""
    return BUILDERS[card.kind, protocol.family](card, protocol, data, tokenizer, context)


def family_of(tokenizer: Tokenizer) -> str:
    """Return the family of models that a tokenizer is made for: a BERT's has a `[MASK]`."""
    return "gpt" if tokenizer.backend.token_to_id("[MASK]") is None else "bert"
