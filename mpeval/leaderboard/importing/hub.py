"""Metadata of Hugging Face: `model-index` of a model's card, and the files of `.eval_results`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mpeval.errors import DataError
from mpeval.leaderboard.entries import is_date
from mpeval.leaderboard.importing.benchmarks import (
    PROTOCOL_UNKNOWN,
    task_named,
    title_of,
    unit_of,
)
from mpeval.leaderboard.importing.documents import count, mapping, sequence, words, yaml_documents
from mpeval.leaderboard.importing.drafts import (
    Draft,
    Given,
    Reading,
    given_source,
    is_address,
    is_protocol,
    shots_suffix,
)
from mpeval.leaderboard.importing.scales import as_printed
from mpeval.leaderboard.published import RACE_TEST, published_items
from mpeval.leaderboard.reported import ReportedModel, Source

INDEX = "a model card, or YAML with `model-index`"
RESULTS = "a YAML file of `.eval_results`"
SPLITS = {"validation": "valid"}
"""Sets that have another name here."""
GROUPS = {"middle": "accuracy_middle", "high": "accuracy_high"}
"""Subsets of RACE by the name of a configuration or a task there."""


def read_model_index(text: str, given: Given) -> Reading:
    """Read the `model-index` of a card, with the hub's own parser.

    Raises:
        DataError: no such metadata.
    """
    from huggingface_hub.repocard_data import model_index_to_eval_results

    reading = Reading()
    documents = [mapping(document) for document in yaml_documents(text, INDEX)]
    models = [model for document in documents for model in sequence(document.get("model-index"))]
    if not models:
        raise DataError("the file has no `model-index`", f"give {INDEX}")
    for number, model in enumerate(map(mapping, models), start=1):
        name = words(model.get("name"))
        if not name or "results" not in model:
            raise DataError(f"model {number} of the `model-index` has no `name` or no `results`", f"give {INDEX}")
        for place, result in enumerate(sequence(model["results"]), start=1):
            where = f"{name}, result {place}"
            try:
                _, metrics = model_index_to_eval_results([{"name": name, "results": [result]}])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reading.rows += 1
                reading.say(where, name, [("entry", f"no result: {error!r}: left out")], kept=False)
                continue
            for which, metric in enumerate(metrics, start=1):
                reading.rows += 1
                _index_entry(f"{where}, metric {which}", given.model or name, vars(metric), given, reading)
    return reading


def _index_entry(place: str, raw_name: object, result: Mapping[str, Any], given: Given, reading: Reading) -> None:
    name = reading.name(place, raw_name)
    dataset = words(result["dataset_type"])
    task = task_named(dataset) or task_named(words(result["dataset_name"]))
    said, args = mapping(result["dataset_args"]), mapping(result["metric_args"])
    metric = _metric(task, result)
    source = _source(result["source_url"], result["source_name"], "model-index", "", given)
    problems = _problems(task, dataset, metric, source)
    if problems:
        reading.say(place, words(raw_name), problems, kept=False)
    if not name or problems or source is None:
        return
    unit = unit_of(metric)
    assert unit is not None
    printed = as_printed(result["metric_value"], words(args.get("unit")), unit, place, name.text, metric, reading)
    if printed is None:
        return
    protocol = words(said.get("protocol"))
    known = is_protocol(protocol)
    shots = words(said.get("num_few_shot", said.get("shots"))) or name.shots
    split = words(result["dataset_split"])
    items = count(args.get("n"))
    reading.drafts.append(
        Draft(
            place=place,
            task=task,
            title=title_of(task),
            protocol=protocol if known else f"{task}/model-index" + shots_suffix(shots),
            split=SPLITS.get(split, split) or "test",
            unit=unit,
            values={metric: printed},
            items={metric: items} if items else {},
            model=ReportedModel(name=name.text, shots=shots),
            source=source,
            flags=_flags(said, known=known),
            record=words(args.get("record_id")),
        )
    )


def _flags(said: Mapping[str, Any], *, known: bool) -> tuple[str, ...]:
    flags = [words(flag) for flag in sequence(said.get("flags")) if words(flag)]
    return tuple(dict.fromkeys([*flags, *([] if known else [PROTOCOL_UNKNOWN])]))


def _metric(task: str, result: Mapping[str, Any]) -> str:
    """Return what a metric is called here: by its name if that is one, else by its type and the part it is of."""
    name = "_".join(words(result["metric_name"]).casefold().split())
    if unit_of(name):
        return name
    kind = words(result["metric_type"]).casefold()
    if task == "race" and kind == "accuracy":
        return GROUPS.get(words(result["dataset_config"]), kind)
    return "word_perplexity" if task.startswith("wikitext") and kind == "perplexity" else kind


def _problems(task: str, dataset: str, metric: str, source: Source | None) -> list[tuple[str, str]]:
    found = [] if task else [("unknown-benchmark", f"`{dataset}` is no benchmark that is known: left out")]
    found += [] if unit_of(metric) else [("unknown-metric", f"which way `{metric}` goes is not known: left out")]
    return found + ([] if source else [("no-source", "no address of a source: left out")])


def _source(url: object, title: object, locator: str, date: str, given: Given) -> Source | None:
    if isinstance(url, str) and is_address(url):
        return Source(title=words(title) or url, url=url, locator=locator, date=date)
    return given_source(given, locator)


def read_eval_results(text: str, given: Given) -> Reading:
    """Read a file of `.eval_results`, with the hub's own parser; it does not say of which model it is.

    The format has no metric: what is not the accuracy on a known benchmark is left out.

    Raises:
        DataError: no such file, or nobody says which model.
    """
    from huggingface_hub import parse_eval_result_entries

    documents = yaml_documents(text, RESULTS)
    entries = sequence(documents[0]) if len(documents) == 1 else []
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError("the file is no list of results", f"give {RESULTS}")
    if not given.model:
        raise DataError("such a file does not say of which model it is", "give `--model`")
    reading = Reading()
    for number, entry in enumerate(entries, start=1):
        reading.rows += 1
        try:
            (parsed,) = parse_eval_result_entries([entry])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reading.say(f"entry {number}", given.model, [("entry", f"no result: {error!r}: left out")], kept=False)
            continue
        _results_entry(f"entry {number}", vars(parsed), given, reading)
    return reading


def _results_entry(place: str, entry: Mapping[str, Any], given: Given, reading: Reading) -> None:
    name = reading.name(place, given.model)
    task = task_named(words(entry["dataset_id"]))
    kind = words(entry["task_id"])
    metric = GROUPS.get(kind, "accuracy") if task == "race" else "accuracy" * (not task.startswith("wikitext"))
    notes = words(entry["notes"])
    date = str(entry["date"] or "")[:10]
    date = date if is_date(date) else ""
    source = _source(entry["source_url"], entry["source_name"], ".eval_results", date, given)
    problems = _problems(task, words(entry["dataset_id"]), metric or "perplexity of an unknown kind", source)
    if problems:
        reading.say(place, given.model, problems, kept=False)
    if not name or problems or source is None:
        return
    percent = "percent" if "percent" in notes else ""
    printed = as_printed(entry["value"], percent, "proportion", place, name.text, metric, reading)
    if printed is None:
        return
    protocol = re.search(r"\bprotocol ([^/\s;]+(?:/[^/\s;]+)+)", notes)
    split = "valid" if task == "piqa" else "test"
    items = published_items(task, split, metric)
    flags = ("ensemble",) if "ensemble" in notes else ()
    reading.drafts.append(
        Draft(
            place=place,
            task=task,
            title=title_of(task),
            protocol=protocol.group(1) if protocol else f"{task}/eval-results" + shots_suffix(name.shots),
            split=split,
            unit="proportion",
            values={metric: printed},
            items={metric: items} if items and (metric in RACE_TEST or f"n={items}" in notes) else {},
            model=ReportedModel(name=name.text, shots=name.shots),
            source=source,
            flags=flags if protocol else (*flags, PROTOCOL_UNKNOWN),
            note=notes,
        )
    )
