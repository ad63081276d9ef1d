"""Look at drafts for what cannot be right, though each value is a number: nothing is dropped for it, all is said."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpeval.leaderboard.importing.drafts import Draft, Finding, Reading
from mpeval.leaderboard.published import RACE_TEST, unlike_pooled

RACE_IDENTITY = "race-identity"
"""Flag of accuracies on RACE that do not go together."""
WRONG_SOURCE = "source-doubtful"
"""Flag of a number whose source is older than its model."""
OUTLIER = {"proportion": 1.0, "perplexity": 1000.0}
"""Percent that an accuracy is odd at or below, and the perplexity that it is odd above."""

FIRST_SEEN = (
    ("MT-NLG|Megatron-?Turing", "2021-10"),
    ("GPT-3", "2020-05"),
    ("Gopher", "2021-12"),
    ("Chinchilla", "2022-03"),
    ("PaLM", "2022-04"),
    ("OPT-?\\d", "2022-05"),
    ("BLOOM", "2022-07"),
    ("LLaMA", "2023-02"),
    ("Pythia", "2023-02"),
    ("Mistral", "2023-09"),
)
"""The month in which models of a family were first heard of."""
GPT2_SIZES = {"124M": "117M", "355M": "345M", "774M": "762M"}
"""Sizes of the released weights, and what the GPT-2 paper prints for them."""


@dataclass(frozen=True, kw_only=True)
class Erratum:
    """A value that tables hand on, and what is known to be wrong with it."""

    task: str
    model: str
    """A pattern of names."""
    metric: str
    printed: str
    said: str


ERRATA = (
    Erratum(
        task="lambada",
        model="^Chinchilla",
        metric="accuracy",
        printed="77.7",
        said="the Chinchilla paper prints 77.4; 77.7 is the PaLM paper's",
    ),
    Erratum(
        task="piqa",
        model="^GPT-2",
        metric="accuracy",
        printed="69.2",
        said="on the official page it is the first GPT's, not GPT-2's",
    ),
    Erratum(
        task="race",
        model="^RoBERTa",
        metric="accuracy_high",
        printed="81.3",
        said="the Megatron-LM paper prints 81.8, with which 83.2 on all fits",
    ),
)


def checked(reading: Reading) -> Reading:
    """Return the drafts of a file with the flags that they need, and all that was found."""
    findings = list(reading.findings)
    drafts = [_one(draft, findings) for draft in reading.drafts]
    findings += _several(drafts)
    return Reading(rows=reading.rows, drafts=drafts, findings=findings)


def _one(draft: Draft, findings: list[Finding]) -> Draft:
    """Look at one draft by itself."""

    def say(code: str, done: str) -> None:
        findings.append(Finding(place=draft.place, model=draft.model.name, code=code, done=done))

    for metric, printed in draft.values.items():
        value, limit = float(printed), OUTLIER[draft.unit]
        if value <= limit if draft.unit == "proportion" else value > limit:
            say("outlier", f"{metric} {printed} is far from usual: kept")
        for known in ERRATA:
            same = (known.task, known.metric, known.printed) == (draft.task, metric, printed)
            if same and re.search(known.model, draft.model.name):
                say("known-error", f"{metric} {printed}: {known.said}")
                draft = draft.noted(known.said)
    size = re.search(r"^GPT-?2\b.*?\b(124M|355M|774M)\b", draft.model.name)
    if size:
        said = f"the GPT-2 paper prints {GPT2_SIZES[size.group(1)]} for {size.group(1)}"
        say("alias", f"{said}: the name is kept")
        draft = draft.noted(said)
    race = _race(draft) if draft.task == "race" and draft.split == "test" else None
    if race:
        say(*race)
        draft = draft.flagged(RACE_IDENTITY)
    return _dated(draft, findings)


def _race(draft: Draft) -> tuple[str, str] | None:
    """Compare the accuracy on all questions with those of the groups pooled, within rounding."""
    names = ("accuracy", *RACE_TEST)
    if not set(names) <= draft.values.keys():
        return None
    whole, middle, high = (draft.values[name] for name in names)
    said = unlike_pooled(whole, middle, high)
    if not said:
        return None
    if not unlike_pooled(whole, high, middle):
        return "race-swapped", f"{said}, but would the other way round: kept as printed, flagged"
    return RACE_IDENTITY, f"{said}: kept, flagged"


def _dated(draft: Draft, findings: list[Finding]) -> Draft:
    """Compare the source's date with its number at arXiv, and with the model's age."""
    source, name = draft.source, draft.model.name
    match = re.search(r"arxiv\.org/(?:abs|pdf)/(\d{2})(0[1-9]|1[0-2])\.\d{4,5}", source.url)
    posted = f"20{match.group(1)}-{match.group(2)}" if match else ""
    month = source.date[:7]
    if posted and month and abs(_months(month) - _months(posted)) > 1:
        done = f"the source is of {posted} by its number at arXiv, of {source.date} by the table: kept"
        findings.append(Finding(place=draft.place, model=name, code="date-differs", done=done))
    first = next((seen for pattern, seen in FIRST_SEEN if re.search(pattern, name, re.IGNORECASE)), "")
    said = posted or month
    if first and said and said < first:
        done = f"the source is of {said}, models of this name are not older than {first}: date left out, flagged"
        findings.append(Finding(place=draft.place, model=name, code="older-than-model", done=done))
        return replace(draft, source=source.model_copy(update={"date": ""})).flagged(WRONG_SOURCE)
    return draft


def _months(month: str) -> int:
    year, number = month.split("-")
    return 12 * int(year) + int(number)


def _several(drafts: Sequence[Draft]) -> list[Finding]:
    """Compare drafts of one protocol: one model with several values, one set of values under several names."""
    findings: list[Finding] = []
    models: dict[tuple[str, ...], list[Draft]] = defaultdict(list)
    numbers: dict[tuple[object, ...], list[Draft]] = defaultdict(list)
    for draft in drafts:
        metric = next(iter(draft.values))
        board = (draft.protocol, draft.split, metric)
        models[*board, draft.model.name.casefold(), draft.model.shots].append(draft)
        numbers[*board, draft.source.url, tuple(draft.values.items()), draft.model.shots].append(draft)
    for found in models.values():
        if len({draft.source.url for draft in found}) > 1 and len({_values(draft) for draft in found}) > 1:
            every = " and ".join(dict.fromkeys(" / ".join(draft.values.values()) for draft in found))
            findings += [_finding(draft, "several-values", f"{every} by several sources: all kept") for draft in found]
    for found in numbers.values():
        names = list(dict.fromkeys(draft.model.name for draft in found))
        if len({_bare(name) for name in names}) < len(names):
            listed = ", ".join(f"`{name}`" for name in names)
            done = f"the same number of the same source as {listed}: all kept"
            findings += [_finding(draft, "same-number", done) for draft in found]
    return findings


def _values(draft: Draft) -> tuple[tuple[str, str], ...]:
    return tuple(draft.values.items())


def _bare(name: str) -> str:
    """Return a name without what a wrong encoding would have damaged."""
    return re.sub(r"\[\?\]|[^\x21-\x7e]|^-+|\s", "", name.casefold()).lstrip("-")


def _finding(draft: Draft, code: str, done: str) -> Finding:
    return Finding(place=draft.place, model=draft.model.name, code=code, done=done)
