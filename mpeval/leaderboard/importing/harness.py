"""Results files of lm-eval, of today's form and of that before 0.4."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mpeval.errors import DataError, shown
from mpeval.harness_results import protocol_of
from mpeval.leaderboard.importing.benchmarks import title_of, unit_of
from mpeval.leaderboard.importing.cleaning import finite
from mpeval.leaderboard.importing.documents import count, json_of, mapping, words
from mpeval.leaderboard.importing.drafts import Draft, Given, Reading, given_source
from mpeval.leaderboard.reported import ReportedModel, Source

WHAT = "a results_....json of lm-eval"
NO_METRICS = frozenset({"alias", "name", "sample_len", "sample_count", " "})
METRICS = {"acc": "accuracy", "acc_norm": "accuracy_norm", "ppl": "perplexity", "perplexity": "perplexity"}
"""Names of metrics here, for tasks that are a card's protocol."""
PRIMARY = ("accuracy", "acc", "exact_match", "f1", "acc_norm", "perplexity", "word_perplexity")
"""Which metric of a task comes first."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A task of lm-eval that is a benchmark's here."""

    task: str
    protocol: str
    split: str
    n: int
    versions: tuple[str, ...] = ()
    """Those that are this protocol; empty where none ever differed."""
    before: str = ""
    """The protocol of other versions, and of those that are not said."""


_LAMBADA = _Known(task="lambada", protocol="lambada/lm-eval-openai", split="test", n=5153)
KNOWN = {
    "lambada_openai": _LAMBADA,
    "lambada": _LAMBADA,
    "lambada_standard": _Known(task="lambada", protocol="lambada/lm-eval-standard", split="test", n=5153),
    "piqa": _Known(task="piqa", protocol="piqa/lm-eval", split="valid", n=1838),
    "race": _Known(
        task="race",
        protocol="race/lm-eval",
        split="test",
        n=1045,
        versions=("3", "3.0"),
        before="race/lm-eval-before-3",
    ),
    "wikitext": _Known(
        task="wikitext2",
        protocol="wikitext2/lm-eval",
        split="test",
        n=62,
        versions=("2", "2.0"),
        before="wikitext2/lm-eval-before-2",
    ),
}
"""By lm-eval's name.  Its `lambada` was OpenAI's text; its `wikitext` is WikiText-2."""


def read(text: str, given: Given) -> Reading:
    """Read a results file.

    Raises:
        DataError: another kind of file, or one of which neither it nor the user says the model or the source.
    """
    document = mapping(json_of(text, WHAT))
    results = mapping(document.get("results"))
    if not results or not all(isinstance(scores, dict) for scores in results.values()):
        raise DataError("the file has no `results` by task", f"give {WHAT}")
    model, source = _model(document, given), given_source(given, "results file")
    if source is None:
        raise DataError("a results file does not say where it is published", "give `--source-url`")
    reading = Reading()
    for name, scores in results.items():
        reading.rows += 1
        _task(name, scores, model, source, document, reading)
    return reading


def _model(document: Mapping[str, Any], given: Given) -> ReportedModel:
    """Return the model: as the user calls it, or as the file does."""
    config = mapping(document.get("config"))
    args = re.search(r"(?:^|,)\s*(?:pretrained|engine|model)=([^,]+)", words(config.get("model_args")))
    name = given.model or words(document.get("model_name")) or (args.group(1).strip() if args else "")
    if not name:
        raise DataError("the file does not say of which model it is", "give `--model`")
    size = finite(config.get("model_num_parameters"))
    return ReportedModel(name=name, parameters=size if size and size > 0 else None)


def _task(
    name: str,
    scores: Mapping[str, Any],
    model: ReportedModel,
    source: Source,
    document: Mapping[str, Any],
    reading: Reading,
) -> None:
    """Make a draft of each kind of metric of a task."""
    known = KNOWN.get(name)
    version = words(mapping(document.get("versions")).get(name))
    shots, items, partial = _shots(name, document), *_items(name, document)
    odd = known is not None and bool(known.versions) and version not in known.versions
    if odd and known:
        said = f"version {version or 'unknown'} is another protocol: `{known.before}`"
        reading.say(name, model.name, [("task-version", said)])
    if partial:
        reading.say(name, model.name, [("partial", "not all items: kept, flagged and not ranked")])
    values: dict[str, tuple[str, float | None]] = {}
    for metric, raw, stderr in _metrics(scores, named=known is not None):
        printed = _printed(name, model.name, metric, raw, reading)
        if printed is not None:
            values[metric] = printed, stderr
    n = items or (known.n if known and not partial else 0)
    if known:
        short = known.before if odd else known.protocol
        protocol = short + (f"-{shots}-shot" if shots not in {"", "0"} else "")
        place = (known.task, title_of(known.task), protocol, known.split)
    else:
        place = (name, name, protocol_of(name, int(shots or 0)), "test")
    for unit in ("proportion", "perplexity"):
        chosen = {metric: value for metric, value in values.items() if unit_of(metric.partition("/")[0]) == unit}
        if chosen:
            reading.drafts.append(
                Draft(
                    place=name,
                    task=place[0],
                    title=place[1],
                    protocol=place[2],
                    split=place[3],
                    unit=unit,
                    values={metric: printed for metric, (printed, _) in chosen.items()},
                    items={metric: n for metric in chosen if n and metric.startswith("acc")},
                    errors={metric: error for metric, (_, error) in chosen.items() if error is not None},
                    model=model.model_copy(update={"shots": shots}),
                    source=source,
                    flags=("partial",) if partial else (),
                    note=f"lm-eval's {name}" + f" version {version}" * bool(version),
                )
            )


def _metrics(scores: Mapping[str, Any], *, named: bool) -> Iterator[tuple[str, object, float | None]]:
    """Yield name, value and standard error of each metric, the primary one first."""
    found: list[tuple[str, object, float | None]] = []
    for key, raw in scores.items():
        metric, comma, chosen = key.partition(",")
        if metric in NO_METRICS or metric.endswith("_stderr"):
            continue
        error = scores.get(f"{metric}_stderr{comma}{chosen}")
        stderr = finite(error)
        stderr = stderr if stderr and stderr > 0 else None
        name = METRICS.get(metric, metric) if named else metric
        found.append((name + (f"/{chosen}" if chosen not in {"", "none"} else ""), raw, stderr))
    order = {name: place for place, name in enumerate(PRIMARY)}
    yield from sorted(found, key=lambda metric: order.get(metric[0].partition("/")[0], len(order)))


def _printed(place: str, model: str, metric: str, raw: object, reading: Reading) -> str | None:
    """Return a value as it is printed here, accuracies in percent: two digits tell up to 10,000 items apart."""
    unit = unit_of(metric.partition("/")[0])
    if unit is None:
        reading.say(
            place, model, [("unknown-metric", f"`{shown(metric)}` left out: it is no share or perplexity")], kept=False
        )
        return None
    value = finite(raw)
    if value is None:
        code = "not-finite" if isinstance(raw, float) else "not-a-number"
        reading.say(place, model, [(code, f"{metric}: `{shown(raw)}` left out")], kept=False)
        return None
    if value < 0 or (unit == "proportion" and value > 1):
        reading.say(place, model, [("out-of-range", f"{metric}: {value:g} is no {unit}: left out")], kept=False)
        return None
    if unit == "perplexity":
        return f"{value:.4f}"
    return format((100 * Decimal(repr(value))).quantize(Decimal("0.01")), "f")  # as exact as the file's own digits


def _shots(name: str, document: Mapping[str, Any]) -> str:
    for place in (mapping(document.get("n-shot")), mapping(document.get("config"))):
        said = place.get(name, place.get("num_fewshot"))
        if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < 1000:
            return str(said)
    return ""


def _items(name: str, document: Mapping[str, Any]) -> tuple[int, bool]:
    """Return how many items a task was of, 0 if that is not said, and whether they were not all."""
    counts = mapping(mapping(document.get("n-samples")).get(name))
    effective, original = (count(counts.get(key)) or 0 for key in ("effective", "original"))
    limited = mapping(document.get("config")).get("limit") not in (None, "None")
    return effective, (limited if not effective else effective < original or (limited and effective != original))
