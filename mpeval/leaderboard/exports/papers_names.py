"""The names that Papers With Code had for the benchmarks and metrics of the cards."""

from __future__ import annotations

from dataclasses import dataclass

from mpeval.leaderboard.store import Number
from mpeval.results import Metric

PARAMETERS = "Number of params"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of its tables: where it stood, and what stands in which column."""

    card: str
    task: str
    dataset: str
    columns: tuple[tuple[tuple[str, ...], dict[str, str]], ...]
    """For each group of sets, the column of each metric by its name, in order."""
    others: bool = True
    """Whether only a line's primary metric has a column, or the others too."""
    parameters: bool = False
    """Whether it has a column of the models' sizes."""

    def column(self, entry: Number, metric: Metric) -> str:
        """Return the column of a metric of a line, empty if it has none."""
        if metric is not entry.metric and not self.others:
            return ""
        return next((names.get(metric.name, "") for parts, names in self.columns if entry.part in parts), "")

    @property
    def order(self) -> list[str]:
        """Every column that it may have, in order."""
        scores = [column for _, names in self.columns for column in names.values()]
        return list(dict.fromkeys([*scores, *([PARAMETERS] if self.parameters else [])]))


VALID = ("valid", "validation", "dev")
ACCURACY = {"accuracy": "Accuracy", "acc": "Accuracy"}
PERPLEXITIES = ("adjusted_perplexity", "word_perplexity", "perplexity")
"""Per word of the original text, whatever the tokenizer; others have no place in its tables."""
RACE = ACCURACY | {"accuracy_middle": "Accuracy (Middle)", "accuracy_high": "Accuracy (High)"}
LAMBADA = ACCURACY | {"target_perplexity": "Perplexity", "perplexity": "Perplexity"}
SPANS = {"exact": "EM", "exact_match": "EM", "f1": "F1"}
MNLI = tuple(
    (
        tuple(f"{begin}{joined}{kind}" for begin, joined in (("dev", "-"), ("test", "-"), ("validation", "_"))),
        dict.fromkeys(ACCURACY, kind.capitalize()),
    )
    for kind in ("matched", "mismatched")
)
WIKITEXT = tuple(
    (parts, dict.fromkeys(PERPLEXITIES, f"{kind} perplexity"))
    for parts, kind in ((("test",), "Test"), (VALID, "Validation"))
)
_LANGUAGE, _QUESTIONS = "Language Modelling", "Question Answering"
TABLES = (
    Table(card="lambada", task=_LANGUAGE, dataset="LAMBADA", columns=((("test",), LAMBADA),)),
    Table(card="wikitext103", task=_LANGUAGE, dataset="WikiText-103", columns=WIKITEXT, others=False, parameters=True),
    Table(card="mnli", task="Natural Language Inference", dataset="MultiNLI", columns=MNLI, others=False),
    Table(
        card="qqp",
        task="Paraphrase Identification",
        dataset="Quora Question Pairs",
        columns=(((*VALID, "test"), ACCURACY | {"f1": "F1"}),),
    ),
    Table(card="piqa", task=_QUESTIONS, dataset="PIQA", columns=(((*VALID, "test"), ACCURACY),), others=False),
    Table(card="squad", task=_QUESTIONS, dataset="SQuAD1.1", columns=((("dev-v1.1", "test-v1.1"), SPANS),)),
    Table(card="squad", task=_QUESTIONS, dataset="SQuAD2.0", columns=((("dev-v2.0", "test-v2.0"), SPANS),)),
    Table(card="race", task="Reading Comprehension", dataset="RACE", columns=((("test",), RACE),)),
)
"""By task, then data set, as they are written."""
