"""Text of strangers made fit for a page: one line, with nothing in it that changes what stands beside it."""

from __future__ import annotations

import re
import unicodedata

TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of the text after them, in other cells too."""


def one_line(text: str) -> str:
    """Return `text` with every run of white space as one space, without control characters and turning marks."""
    return harmless(" ".join(TURNING.sub("", text).split()))


def harmless(text: str) -> str:
    """Return `text` without turning marks and control characters, by which it could write elsewhere; lines stay."""
    kept = TURNING.sub("", text)
    return "".join(letter for letter in kept if letter == "\n" or unicodedata.category(letter) != "Cc")


def slug(text: str) -> str:
    """Return `text` in small ASCII letters, digits and single hyphens, for labels; empty if it has none of them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
