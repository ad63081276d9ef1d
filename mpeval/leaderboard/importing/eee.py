"""Files of Every Eval Ever: one model's results, with direction, unit and uncertainty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mpeval.errors import DataError
from mpeval.leaderboard.importing.benchmarks import PROTOCOL_UNKNOWN, task_named, title_of, unit_of
from mpeval.leaderboard.importing.cleaning import finite
from mpeval.leaderboard.importing.documents import count, json_of, mapping, sequence, words
from mpeval.leaderboard.importing.drafts import Draft, Given, Reading, given_source, is_address, is_protocol
from mpeval.leaderboard.importing.scales import as_printed, is_fraction
from mpeval.leaderboard.reported import ReportedModel, Source, Unit

WHAT = "a file of Every Eval Ever, of one model's `evaluation_results`"
REQUIRED = ("schema_version", "model_info", "source_metadata", "evaluation_results")


def read(text: str, given: Given) -> Reading:
    """Read a file.

    Raises:
        DataError: another kind of file.
    """
    document = mapping(json_of(text, WHAT))
    lacking = [key for key in REQUIRED if key not in document]
    if lacking:
        raise DataError(f"the file has no `{lacking[0]}`", f"give {WHAT}")
    reading = Reading()
    for number, result in enumerate(sequence(document["evaluation_results"]), start=1):
        reading.rows += 1
        _result(f"result {number}", mapping(result), document, given, reading)
    return reading


def _result(place: str, result: Mapping[str, Any], document: Mapping[str, Any], given: Given, reading: Reading) -> None:
    info = mapping(document["model_info"])
    name = reading.name(place, given.model or info.get("name"))
    data = mapping(result.get("source_data"))
    details = {key: words(value) for key, value in mapping(data.get("additional_details")).items()}
    config = mapping(result.get("metric_config"))
    dataset = words(data.get("dataset_name"))
    task = task_named(dataset)
    metric = _metric(task, config, words(result.get("evaluation_name")))
    unit = unit_of(metric)
    source = _source(document, given)
    problems = _problems(task, dataset, metric, unit, config, source)
    if problems:
        reading.say(place, name.text if name else "", problems, kept=False)
    if not name or problems or source is None or unit is None:
        return
    score = mapping(result.get("score_details"))
    said = words(config.get("metric_unit"))
    printed = as_printed(score.get("score"), said, unit, place, name.text, metric, reading)
    if printed is None:
        return
    uncertainty = mapping(score.get("uncertainty"))
    items = count(uncertainty.get("num_samples"))
    protocol = details.get("protocol", "")
    known = is_protocol(protocol)
    in_percent = unit == "proportion" and not is_fraction(score.get("score"), said)
    error = _error(uncertainty, in_percent=in_percent)
    size = words(mapping(info.get("additional_details")).get("parameters"))
    flags = [flag.strip() for flag in details.get("flags", "").split(",") if flag.strip()]
    reading.drafts.append(
        Draft(
            place=place,
            task=task,
            title=title_of(task),
            protocol=protocol if known else f"{task}/every-eval-ever",
            split=details.get("split") or "test",
            unit=unit,
            values={metric: printed},
            items={metric: items} if items else {},
            errors={metric: error} if error else {},
            model=ReportedModel(
                name=name.text,
                family=words(mapping(info.get("additional_details")).get("family")),
                parameters=float(size) if re.fullmatch(r"[1-9]\d{0,14}", size) else None,
                shots=details.get("shots", "") or name.shots,
            ),
            source=source,
            flags=tuple(dict.fromkeys([*flags, *([] if known else [PROTOCOL_UNKNOWN])])),
            record=details.get("record_id", ""),
        )
    )


def _metric(task: str, config: Mapping[str, Any], evaluation: str) -> str:
    """Return what a metric is called here; of RACE the evaluation's name may say which part it is of."""
    name = "_".join((words(config.get("metric_id")) or words(config.get("metric_name"))).casefold().split())
    part = re.fullmatch(r"race[ -]?(middle|high|m|h)", evaluation, re.IGNORECASE)
    if task == "race" and name == "accuracy" and part:
        return "accuracy_" + {"m": "middle", "h": "high"}[part.group(1)[0].casefold()]
    return name


def _problems(
    task: str, dataset: str, metric: str, unit: Unit | None, config: Mapping[str, Any], source: Source | None
) -> list[tuple[str, str]]:
    found = [] if task else [("unknown-benchmark", f"`{dataset}` is no benchmark that is known: left out")]
    if unit is None:
        found.append(("unknown-metric", f"which way `{metric}` goes is not known: left out"))
    elif config.get("lower_is_better") is not (unit == "perplexity"):
        found.append(("direction", f"the file says that of `{metric}` the other direction is better: left out"))
    return found + ([] if source else [("no-source", "no address of a source: left out")])


def _source(document: Mapping[str, Any], given: Given) -> Source | None:
    """Return where the file says that its numbers stand."""
    source = mapping(document["source_metadata"])
    details = mapping(source.get("additional_details"))
    url = words(details.get("url"))
    if not is_address(url):
        return given_source(given, "file of Every Eval Ever")
    title, locator = words(source.get("source_name")), words(details.get("locator"))
    moment = words(document.get("evaluation_timestamp"))
    date = ""
    if re.fullmatch(r"\d{1,10}", moment):
        date = datetime.fromtimestamp(int(moment), UTC).date().isoformat()
    return Source(
        title=title.removesuffix(f", {locator}") or url,
        url=url,
        locator=locator or "file of Every Eval Ever",
        date=date,
        quote=words(details.get("quote")),
        evidence=words(details.get("evidence")),
    )


def _error(uncertainty: Mapping[str, Any], *, in_percent: bool) -> float | None:
    """Return the standard error as a proportion or a perplexity; the file gives it in the unit of the score."""
    value = finite(mapping(uncertainty.get("standard_error")).get("value"))
    if value is None or value <= 0:
        return None
    return value / 100 if in_percent else value
