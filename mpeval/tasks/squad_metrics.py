"""Exact match and F1 of an answer's words, as SQuAD's official evaluation scripts define them (v1.1 and v2.0)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """Return what is compared of a text: lower case, no ASCII punctuation, no articles, single spaces.

    The order matters and is the scripts': punctuation goes first, so that `a.` is an article and `O'Neil` one word.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score_v1(prediction: str, answers: Sequence[str]) -> tuple[int, float]:
    """Return exact match (0 or 1) and F1 by the script of version 1.1: each is the best over all answers.

    Where neither side has a word left, such as `the` for `a`, that is an exact match with an F1 of 0.
    """
    said = normalize(prediction)
    wanted = [normalize(answer) for answer in answers]
    return max(int(said == answer) for answer in wanted), max(_overlap(said, answer) for answer in wanted)


def score_v2(prediction: str, answers: Sequence[str]) -> tuple[int, float]:
    """Return exact match (0 or 1) and F1 by the script of version 2.0; no answers: the question has none.

    The right prediction for such a question is empty, and so it is where no answer has a word left.  If prediction or
    answer has no words, F1 is 1 when neither has any.
    """
    said = normalize(prediction)
    wanted = [answer for answer in map(normalize, answers) if answer] or [""]
    shared = [_overlap(said, answer) if said and answer else float(said == answer) for answer in wanted]
    return max(int(said == answer) for answer in wanted), max(shared)


def _overlap(said: str, wanted: str) -> float:
    """Return F1 of two normalized texts' words, each counted as often as both have it."""
    ours, theirs = said.split(), wanted.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    # precision and recall one after the other, as the scripts compute them, so that no last bit differs
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


SCORES: dict[str, Callable[[str, Sequence[str]], tuple[int, float]]] = {"squad/v1": score_v1, "squad/v2": score_v2}
"""Which script's rules a protocol scores by."""
