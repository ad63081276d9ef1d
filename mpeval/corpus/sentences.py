"""Sentences of English text, as BERT's sequences are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator

WINDOW = 4000
"""Letters that are looked at together: the library's time grows with the square of their number."""
LONGEST = 16 * WINDOW
"""Letters after which a stretch without any sentence end is taken for one."""
BLANK = re.compile(r"\n\s*\n")


def sentences(text: str) -> list[str]:
    """Split a text into sentences without the white space around them; a blank line always ends one."""
    return [sentence for block in BLANK.split(text) for piece in _segments(block) if (sentence := piece.strip())]


def _segments(block: str) -> Iterator[str]:
    """Divide a block at the ends of its sentences; a sentence that reaches the end of a window begins the next one."""
    from sentencex import segment

    start, size = 0, WINDOW
    while len(block) - start > size:
        pieces = segment("en", block[start : start + size])
        if len(pieces) == 1 and size < LONGEST:
            size *= 2
            continue
        whole = pieces[:-1] or pieces
        yield from whole
        start, size = start + sum(map(len, whole)), WINDOW
    yield from segment("en", block[start:])
