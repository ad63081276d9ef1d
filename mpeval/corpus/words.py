"""The words of a text and their n-grams as 64-bit hashes, the measure of both corpus filters.

A word is a run of letters and digits in lower case; everything else separates words.  This is the normalisation of the
GPT-2 paper (Radford et al. 2019, section 4), which the Megatron-LM paper's 8-gram overlap follows.  WikiText's own
tokenization needs no undoing for it: `1 @,@ 000` and `1,000` are the same two words.
"""

from __future__ import annotations

import functools

import numpy as np

from mpeval.corpus.compiled import compiled

BREAK = "\0"
"""A mark in a text that no n-gram crosses; its word has the hash 0."""

_PIECE = 1 << 20
_START = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_FIRST_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_SECOND_FACTOR = np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(33)
_ONE = np.uint64(1)
_BASE = np.uint64(0x9E3779B97F4A7C15)


def word_hashes(text: str) -> np.ndarray:
    """Return the hash of every word of a text in order, uint64; 0 stands where `BREAK` does.

    Different words have different hashes but for a chance of 2**-64 each.
    """
    lowered = text.lower()
    found = []
    start = 0
    while start < len(lowered):
        end = _piece_end(lowered, start + _PIECE)
        codes = np.frombuffer(lowered[start:end].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        hashes = np.empty(len(codes) + 1, dtype=np.uint64)
        found.append(hashes[: compiled(_scan)(codes, _letters(), hashes)])
        start = end
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)


def ngram_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """Return the hash of every run of `length` words that no `BREAK` interrupts, uint64, in order."""
    count = len(words) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    total = words[:count].copy()
    for offset in range(1, length):
        total *= _BASE
        total += words[offset : offset + count]
    return np.asarray(total[whole_ngrams(words, length)])


def whole_ngrams(words: np.ndarray, length: int) -> np.ndarray:
    """Return for each of the `len(words) - length + 1` runs of `length` words whether no `BREAK` interrupts it."""
    breaks = np.concatenate(([0], np.cumsum(words == 0)))
    return np.asarray(breaks[length:] == breaks[:-length])


def _piece_end(text: str, end: int) -> int:
    """Return the first place from `end` on where a text can be cut without cutting a word."""
    while end < len(text) and text[end].isalnum():
        end += 1
    return min(end, len(text))


@functools.cache
def _letters() -> np.ndarray:
    """Return for every code point whether it belongs to a word, bool [1,114,112]."""
    return np.fromiter((chr(code).isalnum() for code in range(0x110000)), dtype=np.bool_, count=0x110000)


def _scan(codes: np.ndarray, letters: np.ndarray, hashes: np.ndarray) -> int:
    """Write the hash of each word into `hashes` (FNV-1a over code points, then MurmurHash3's finalizer); count them."""
    count = 0
    value = _START
    inside = False
    for place in range(len(codes) + 1):
        code = codes[place] if place < len(codes) else np.uint32(32)
        if letters[code]:
            value = (value ^ np.uint64(code)) * _PRIME
            inside = True
            continue
        if inside:
            value = (value ^ (value >> _HALF)) * _FIRST_FACTOR
            value = (value ^ (value >> _HALF)) * _SECOND_FACTOR
            hashes[count] = max(value ^ (value >> _HALF), _ONE)
            count += 1
            value = _START
            inside = False
        if code == 0:
            hashes[count] = np.uint64(0)
            count += 1
    return count
