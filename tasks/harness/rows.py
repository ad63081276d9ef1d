"""Documents of the tasks in this folder, read from files in their published layout; no network is asked.

lm-eval calls these functions with the task's metadata: `data` is the folder, as `mpeval evaluate --data` and
`mpeval harness run --metadata data=DIR` give it.  Without one the sample rows of this project are read.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from mpeval.data import Data, load_data
from mpeval.errors import DataError
from mpeval.tasks.cards import load_card
from mpeval.tasks.likelihood import harness_race, high_articles
from mpeval.tasks.perplexity import detokenize, pages_of

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
WIKITEXT = "wikitext-2-raw/wiki.test.raw"
WIKITEXT_SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"


def lambada(data: str | None = None, **_: Any) -> dict[str, Any]:
    """Return the passages of LAMBADA's test set as `text`."""
    found = _load("lambada", data)
    return {"test": _table([{"text": row} for row in found.rows], found.flags)}


def piqa(data: str | None = None, **_: Any) -> dict[str, Any]:
    """Return PIQA's validation set and, for examples before a question, its training set where it is there."""
    splits = {}
    for ours, theirs in (("valid", "validation"), ("train", "train")):
        found = _load("piqa", data, ours)
        rows = [
            {
                "goal": question.context,
                "sol1": question.options[0],
                "sol2": question.options[1],
                "label": question.answer,
            }
            for question in found.questions
        ]
        splits[theirs] = _table(rows, found.flags)
    return splits


def race(data: str | None = None, **_: Any) -> dict[str, Any]:
    """Return the articles of RACE-high's test set, each with its last question; the others are in the prompt."""
    found = _load("race", data)
    rows = [
        {"prompt": harness_race(article), "options": list(article[-1].options), "answer": article[-1].answer}
        for article in high_articles(found.questions)
    ]
    return {"test": _table(rows, found.flags)}


def wikitext(data: str | None = None, **_: Any) -> dict[str, Any]:
    """Return the articles of WikiText-2's test set, one a page, as the raw file has them."""
    if data is None:
        found = _load("wikitext103", None)
        return {"test": _pages(found.text, found.flags)}
    path = Path(data) / WIKITEXT
    if not path.is_file():
        raise DataError(f"`{path}` does not exist", f"give a folder that holds `{WIKITEXT}` by `--data`")
    content = path.read_bytes()
    flags = () if hashlib.sha256(content).hexdigest() == WIKITEXT_SHA256 else ("modified-data",)
    return {"test": _pages(content.decode("utf-8"), flags)}


def readable(doc: dict[str, Any]) -> str:
    """Return a page without the marks of word-level tokenization."""
    return detokenize(doc["page"])


def per_word_and_byte(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """Return a page's log-probability with what it is divided by: words and bytes before the marks were taken out."""
    [log_probability] = results
    words, size = len(re.split(r"\s+", doc["page"])), len(doc["page"].encode())
    return {
        "word_perplexity": (log_probability, words),
        "byte_perplexity": (log_probability, size),
        "bits_per_byte": (log_probability, size),
    }


def _load(name: str, data: str | None, split: str | None = None) -> Data:
    return load_data(load_card(name), SAMPLES if data is None else Path(data), split)


def _table(rows: list[dict[str, Any]], flags: tuple[str, ...]) -> Any:
    """Return rows as lm-eval reads them; what is odd of them is in their description, for results to say it."""
    from datasets import Dataset

    table = Dataset.from_list(rows)
    table.info.description = f"flags: {' '.join(flags)}"
    return table


def _pages(text: str, flags: tuple[str, ...]) -> Any:
    return _table([{"page": page} for page in pages_of(text)], flags)
