"""Tokenizing each distinct word once: most of a corpus is words seen before, and a look-up is several times faster.

A text is cut where the tokenizer itself always cuts, so that the ids of the pieces, one after another, are exactly the
ids of the text.  Where that is so is known for two kinds: GPT-2's byte-level BPE and BERT's WordPiece.
"""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass
from typing import Any

WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's White_Space; Python's own `\\s` has four control characters more."""
GPT2 = re.compile(f" ?[^{WHITE}]+|[{WHITE}]+(?![^{WHITE}])|[{WHITE}]+")
"""GPT-2's expression, with all that can follow upon each other without white space left in one piece."""
BERT = re.compile("[^ \t\n\r]+")
"""BERT drops or splits at other white space too, but it does so within a piece just as well."""
WORDS = 400_000
"""Pieces remembered, about 80 MB; then forgotten all at once."""
LONGEST = 40
"""Letters of a piece that is worth remembering."""


class Memo(dict[str, bytes]):
    """The ids of pieces of text, as bytes of a dtype (`code`: that of `array`); asks the tokenizer for unknown ones."""

    def __init__(self, backend: Any, code: str) -> None:
        """Begin with nothing remembered."""
        super().__init__()
        self._encode = backend.encode
        self._code = code

    def __missing__(self, piece: str) -> bytes:
        """Tokenize a piece."""
        ids = array(self._code, self._encode(piece, add_special_tokens=False).ids).tobytes()
        if len(piece) <= LONGEST:
            if len(self) >= WORDS:
                self.clear()
            self[piece] = ids
        return ids


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a tokenizer cuts: `pieces` finds the pieces of a text, `added` are the tokens taken out before that."""

    pieces: re.Pattern[str]
    added: tuple[str, ...]

    def of(self, text: str) -> list[str] | None:
        """Return the pieces of a text, or None if it holds added tokens, such as `<|endoftext|>`."""
        return None if any(token in text for token in self.added) else self.pieces.findall(text)


def cut_for(backend: Any) -> Cut | None:
    """Return how a tokenizer cuts, or None for one of which it is not known."""
    made = json.loads(backend.to_str())
    pieces = _pieces(made)
    return Cut(pieces=pieces, added=tuple(token["content"] for token in made["added_tokens"])) if pieces else None


def _pieces(made: dict[str, Any]) -> re.Pattern[str] | None:
    normalizer, split, model = (made[part] or {} for part in ("normalizer", "pre_tokenizer", "model"))
    if normalizer and any(token["normalized"] for token in made["added_tokens"]):
        return None  # such tokens are looked for in a text that is not this one
    if model["type"] == "BPE" and not model["dropout"] and not normalizer:
        known = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        return GPT2 if known.items() <= split.items() else None
    if model["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
        return BERT if split == {"type": "BertPreTokenizer"} else None
    return None
