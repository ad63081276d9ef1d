"""WikiText-103 for a BERT: perplexity of words hidden in windows of the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.items import Masked, Scored
from mpeval.results import Metric
from mpeval.statistics import ratio_perplexity_metrics
from mpeval.tasks.base import Item, Sample, sample_line
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.perplexity import article_numbers, article_shares, article_sums, detokenize
from mpeval.tokenizer import Tokenizer

HIDDEN_SHARE = 0.15
"""Of the tokens of a window that may be hidden."""


def hidden_places(continues: np.ndarray, known: np.ndarray, number: int) -> np.ndarray:
    """Return the places, in order, that window `number` hides: words drawn until 15 % of its known tokens are.

    Args:
        continues: [tokens] bool, pieces that go on with the word before them; the first one begins a word anyway.
        known: [tokens] bool, tokens that may be hidden; a word with any other is left alone.
        number: seeds numpy's `RandomState`, whose draws no version of numpy changes.

    The share is rounded to whole tokens, to one at least; the word that reaches it is hidden whole.
    """
    begins = ~continues
    begins[:1] = True
    word = np.cumsum(begins) - 1
    lengths = np.bincount(word)
    whole = np.bincount(word, weights=known) == lengths
    order = np.random.RandomState(number).permutation(np.flatnonzero(whole))
    wanted = max(1, round(HIDDEN_SHARE * int(lengths[whole].sum())))
    drawn = order[: 1 + int(np.searchsorted(lengths[order].cumsum(), wanted))]
    return np.flatnonzero(np.isin(word, drawn))


def summarise_masked(samples: Sequence[Sample]) -> tuple[list[Metric], int, None]:
    """Return the perplexity of hidden tokens, and how many they are."""
    losses, counts = article_sums(samples)
    return ratio_perplexity_metrics(losses, counts, {"masked_perplexity": 1.0}), sum(counts), None


class MaskedWikiText:
    """Held-out masked-language-model perplexity, as the paper reports of its BERTs (section 5.3); an item is a window.

    The paper does not say how its held-out text was masked, so this is a protocol of its own.  The detokenized text
    is cut, across articles, into windows of min(512, context) - 2 tokens between [CLS] and [SEP], all of token type
    0.  In each, 15 % of the tokens become [MASK], whole words at a time (within a window: a word cut by its edge is
    two), and each is scored once, all others visible.  [UNK] stands for many texts and is never asked for.
    """

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Detokenize and tokenize the whole text once, and hide words in each window of it."""
        self.card, self.protocol = card, protocol
        published = protocol.window or context
        self.window = min(published, context)
        if self.window < 3:
            raise DataError(
                f"a context of {context} has no room for a token between [CLS] and [SEP]",
                "give a model, or a `--context`, of 3 or more",
            )
        self.flags = data.flags + ((f"window-{self.window}",) if self.window < published else ())
        text = detokenize(data.text)
        ids, offsets = tokenizer.encode_with_offsets(text)
        self.tokens = np.asarray(ids, dtype=np.int64)
        self.documents = article_numbers(text, offsets)
        self.known = self.tokens != tokenizer.special_id("[UNK]")
        self.continues = np.array(tokenizer.continuations())[self.tokens]
        self.special = [tokenizer.special_id(token) for token in ("[CLS]", "[SEP]", "[MASK]")]
        self.hidden: dict[str, np.ndarray] = {}
        """Places in the text that each window hides, by its id."""
        self.items: Sequence[Item] = list(self._items())
        if not self.items:
            raise DataError(
                f"`{data.source}` has no token to hide: all are [UNK]", "give the tokenizer of the text's language"
            )

    def _items(self) -> Iterator[Item]:
        """Make an item of each window that has any word to hide."""
        cls, sep, mask = self.special
        span = self.window - 2
        for number, start in enumerate(range(0, len(self.tokens), span)):
            cut = slice(start, start + span)
            places = hidden_places(self.continues[cut], self.known[cut], number)
            if not len(places):
                continue
            ids = np.concatenate([[cls], self.tokens[cut], [sep]])
            ids[places + 1] = mask
            name = f"window-{number:06d}"
            self.hidden[name] = start + places
            yield Item(id=name, request=Masked(ids=ids, at=places + 1, target=self.tokens[start + places]))

    def judge(self, item: Item, scored: Scored) -> Sample:
        """Record the window's loss, and its share by article: [article, negative log-likelihood, tokens]."""
        documents = article_shares(self.documents[self.hidden[item.id]], scored)
        return sample_line(self, item, scored, documents=documents)

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Exponentiate the mean loss per hidden token; intervals treat articles as the independent units."""
        return summarise_masked(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count tokens, those that are [UNK], those that are hidden, and windows."""
        hidden = sum(len(places) for places in self.hidden.values())
        return {
            "tokens": len(self.tokens),
            "unknown_tokens": int((~self.known).sum()),
            "hidden_tokens": hidden,
            "hidden_share": hidden / max(1, int(self.known.sum())),
            "windows": len(self.items),
            "articles": int(self.documents.max()) + 1,
        }
