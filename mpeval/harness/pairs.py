"""Texts to token ids as lm-eval divides them: pairs of context and continuation, and windows of long texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mpeval.errors import DataError
from mpeval.items import page_windows
from mpeval.tokenizer import Tokenizer

CHUNK = 8192
"""Texts that are tokenized at a time, in parallel."""


def encode_all(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, list[int]]:
    """Return the ids of every text; one that comes again is tokenized once."""
    unique = list(dict.fromkeys(texts))
    found: dict[str, list[int]] = {}
    for low in range(0, len(unique), CHUNK):
        part = unique[low : low + CHUNK]
        found.update(zip(part, tokenizer.encode_batch(part), strict=True))
    return found


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], prefix: int
) -> list[tuple[list[int], list[int]]]:
    """Divide the ids of each (context, continuation) in two.

    White space at the context's end belongs to the continuation.  Both are tokenized together, and the continuation is
    what that has beyond the tokens of the context alone.  An empty context is the token `prefix`, unless the
    continuation begins with it.

    Raises:
        DataError: a continuation of no token.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    ids = encode_all(tokenizer, [*contexts, *(context + continuation for context, continuation in pairs)])
    divided = []
    for kept, (context, continuation) in zip(contexts, pairs, strict=True):
        whole, start = ids[context + continuation], ids[kept]
        if not start and whole[:1] == [prefix]:
            start, target = whole[:1], whole[1:]
        else:
            target = whole[len(start) :]
        if not target:
            raise DataError(
                f"there is nothing to score in the continuation {continuation[:60]!r} of {context[-60:]!r}",
                "a continuation has at least one token of its own",
            )
        divided.append((start or [prefix], target))
    return divided


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (context, target) so that every token is a target once, given as much as windows of `length` can hold.

    ::
        first    prefix | 0 1 2 3          targets fill the window
        next          3 | 4 5 6 7          and the next, after one token of context
        last        5 6 7 | 8 9            of the last, what is left over becomes context
    """
    text = [prefix, *ids]
    for begin, first, end in page_windows(len(ids), length):
        yield text[begin:first], text[first:end]
