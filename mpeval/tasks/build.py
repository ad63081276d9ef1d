"""From a card to the code that runs it: the only place that lists every task."""

from __future__ import annotations

from collections.abc import Callable

from mpeval.data import Data
from mpeval.tasks.base import Task
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.cloze import Lambada
from mpeval.tasks.perplexity import WikiText
from mpeval.tokenizer import Tokenizer

TaskBuilder = Callable[[Card, Protocol, Data, Tokenizer, int], Task]
BUILDERS: dict[str, TaskBuilder] = {"cloze": Lambada, "perplexity": WikiText}
"""Which class runs a card of which kind."""


def build_task(card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> Task:
    """Tokenize `data` for `protocol`; `context` is the longest input the model reads, in tokens."""
    return BUILDERS[card.kind](card, protocol, data, tokenizer, context)
