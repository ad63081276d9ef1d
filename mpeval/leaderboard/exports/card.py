"""A model card's metadata: results merged into what is there already."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mpeval.errors import DataError

FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n|(?<=\n))---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
"""The YAML block at the beginning of a card."""

Results = list[dict[str, Any]]


def merged(card: str, results: Mapping[str, Results]) -> str:
    """Return a model card with results in its `model-index`; its text and its other metadata stay.

    A metric that is there already, of the same task, data set, arguments and source, gets the new value; all others are
    kept.  Comments in the metadata are lost, as the hub's own library loses them.

    Args:
        card: a README.md, empty if there is none.
        results: of each model, as `model_index` returns them.

    Raises:
        DataError: the card's metadata cannot be read, so nothing can be merged into it.
    """
    found = FRONT.match(card)
    data = _metadata(found[1]) if found else {}
    text = card[found.end() :] if found else card
    index = _index(data)
    for name, new in results.items():
        _merge(_entry(index, name, alone=len(results) == 1)["results"], new)
    data["model-index"] = index
    if not card:
        text = "\n# " + re.sub(r"([\\`*_{}\[\]<>#|&])", r"\\\1", " ".join(next(iter(results)).split())) + "\n"
    newline = "\r\n" if found and "\r\n" in found[0] else "\n"
    return f"---\n{_dump(data)}---\n".replace("\n", newline) + text


def _metadata(block: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(block)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the metadata of the model card are no YAML: {reason}", "mend them first") from error
    if data is not None and not isinstance(data, dict):
        raise DataError("the metadata of the model card are no mapping", "mend them first")
    return data or {}


def _index(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a copy of a card's `model-index`."""
    index = data.get("model-index") or []
    good = isinstance(index, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("results"), list)
        and all(isinstance(result, dict) and isinstance(result.get("metrics"), list) for result in entry["results"])
        and all(isinstance(metric, dict) for result in entry["results"] for metric in result["metrics"])
        for entry in index
    )
    if not good:
        raise DataError(
            "the `model-index` of the model card is no list of models with results", "mend or remove it first"
        )
    return copy.deepcopy(index)


def _entry(index: list[dict[str, Any]], name: str, *, alone: bool) -> dict[str, Any]:
    """Return the entry of a model; a card's only one is meant whatever it is called, for a card is of one model."""
    for entry in index:
        if entry.get("name") == name or (alone and len(index) == 1):
            return entry
    index.append({"name": name, "results": []})
    return index[-1]


def _merge(results: Results, new: Sequence[Mapping[str, Any]]) -> None:
    for result in new:
        what = _but(result, "metrics")
        place = next((old for old in results if _but(old, "metrics") == what), None)
        if place is None:
            results.append(copy.deepcopy(dict(result)))
            continue
        for metric in result["metrics"]:
            key = (metric["type"], metric["name"])
            kept = [old for old in place["metrics"] if (old.get("type"), old.get("name")) != key]
            place["metrics"] = [*kept, copy.deepcopy(metric)]


def _but(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != key}


def _dump(data: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100_000))
