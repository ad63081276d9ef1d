"""From a card to the code that runs it: the only place that lists every task."""

from __future__ import annotations

from collections.abc import Callable

from mpeval.config import ModelConfig
from mpeval.data import Data
from mpeval.errors import CheckpointError
from mpeval.tasks.base import Task
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.choice import LastToken, PiqaPair, RaceLongestContext, RaceMegatron
from mpeval.tasks.cloze import Lambada
from mpeval.tasks.likelihood import LikelihoodChoices
from mpeval.tasks.masked import MaskedWikiText
from mpeval.tasks.pairs import Pairs
from mpeval.tasks.perplexity import WikiText, WikiTextPages
from mpeval.tasks.spans import Spans
from mpeval.tokenizer import Tokenizer

TaskBuilder = Callable[[Card, Protocol, Data, Tokenizer, int], Task]
BUILDERS: dict[tuple[str, str], TaskBuilder] = {
    ("cloze", "gpt"): Lambada,
    ("perplexity", "gpt"): WikiText,
    ("perplexity", "bert"): MaskedWikiText,
    ("pair", "bert"): Pairs,
    ("span", "bert"): Spans,
}
"""Which class runs a card of which kind under a protocol for which family."""
BY_PROTOCOL: dict[str, TaskBuilder] = {
    "race/megatron": RaceMegatron,
    "race/longest-context": RaceLongestContext,
    "race/last-token": LastToken,
    "race/all": LikelihoodChoices,
    "race/lm-eval": LikelihoodChoices,
    "race/gpt3": LikelihoodChoices,
    "piqa/pair": PiqaPair,
    "piqa/last-token": LastToken,
    "piqa/lm-eval": LikelihoodChoices,
    "piqa/byte-norm": LikelihoodChoices,
    "wikitext103/lm-eval": WikiTextPages,
}
"""Which class runs which protocol, where kind and family do not say."""


def build_task(card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> Task:
    """Tokenize `data` for `protocol`; `context` is the longest input the model reads, in tokens."""
    builder = BY_PROTOCOL.get(protocol.id) or BUILDERS[card.kind, protocol.family]
    return builder(card, protocol, data, tokenizer, context)


def family_of(tokenizer: Tokenizer) -> str:
    """Return the family of models that a tokenizer is made for: a BERT's has a `[MASK]`."""
    return "gpt" if tokenizer.backend.token_to_id("[MASK]") is None else "bert"


def check_head(config: ModelConfig, card: Card, protocol: Protocol, holder: str) -> None:
    """Refuse a model without the head that a protocol reads.

    Raises:
        CheckpointError: it has none, or that of another task.
    """
    if protocol.head == "lm":
        if config.family == "bert" and not config.lm_head:
            raise CheckpointError(
                f"{holder} holds a BERT without a masked language model head, so it predicts no token",
                "evaluate the checkpoint it was made from; fine-tuning and `BertModel` drop that head",
            )
        return
    found, classes = config.task_head, config.classes
    if found == protocol.head and (protocol.head != "classification" or classes == protocol.options):
        return
    wanted = f"a {protocol.head} head" + (
        f" of {protocol.options} classes" if protocol.head == "classification" else ""
    )
    there = f"a {found} head" + (f" of {classes} classes" if classes else "") if found else "no task head"
    raise CheckpointError(
        f"{holder} has {there}, `{protocol.id}` needs {wanted}",
        f"finetune it first: `mpeval finetune CHECKPOINT --task {card.name} --output RUN`, then evaluate RUN",
    )
