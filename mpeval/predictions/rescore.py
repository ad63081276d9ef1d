"""Score stored predictions again, against the data and without a model: `mpeval evaluate --from-predictions`.

No torch, no checkpoint and no tokenizer: a line's probabilities (or its text) and the published answers are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpeval import __version__
from mpeval.errors import DataError, UsageError
from mpeval.journal import RESULTS_FILE
from mpeval.predictions.lines import Predicted, Sample, choice_of, probabilities_of, protocols_in, read_predictions
from mpeval.predictions.members import read_results
from mpeval.results import CheckpointInfo, DataInfo, Layout, Metric, Result, RunResults, now

if TYPE_CHECKING:
    from mpeval.data import Data
    from mpeval.questions.question import Question
    from mpeval.tasks.cards import Card, Protocol

KINDS = ("choice", "pair", "span")
"""Kinds of tasks whose sample lines hold all that their metrics need."""
NO_CHECKPOINT = "no-checkpoint"
"""Flag of predictions of which nobody knows what weights made them; such a result is never ranked."""
_OTHER_DATA = "give the data, and the `--split`, that the model was evaluated on"


def summarise(card: Card, samples: Sequence[Sample]) -> tuple[list[Metric], int, int]:
    """Return metrics (the primary first), questions, and how many are right, as the tasks of that kind do.

    Raises:
        UsageError: a kind of task whose samples do not hold all that its metrics need.
    """
    from mpeval.tasks.pairs import summarise_pairs
    from mpeval.tasks.spans import summarise_spans
    from mpeval.tasks.summary import summarise_choices

    if card.kind not in KINDS:
        raise _needs_model(card)
    return {"choice": summarise_choices, "pair": summarise_pairs, "span": summarise_spans}[card.kind](samples)


def _needs_model(card: Card) -> UsageError:
    return UsageError(
        f"`{card.name}` cannot be scored from predictions: its metrics need the model's own tokens",
        "evaluate the checkpoint, without `--from-predictions`",
    )


def rescore(card: Card, protocol: Protocol, data: Data, lines: Sequence[Predicted], source: str) -> Result:
    """Score stored predictions: every id and target against the data, every prediction from its probabilities.

    Args:
        card: the task.
        protocol: the one the lines are under.
        data: the set they are about, as `load_data` reads it.
        lines: of one file, as `read_predictions` reads them.
        source: that file, for messages.

    Returns:
        A result without scoring time; it is `partial` where the data have questions that the lines lack.

    Raises:
        UsageError: a task whose samples do not hold all that its metrics need.
        DataError: a line that fits the data, or itself, not; it names file and line.
    """
    from mpeval.tasks.likelihood import asked

    samples = [line.sample for line in lines]
    if card.kind not in KINDS:
        raise _needs_model(card)
    if not lines:
        raise DataError(f"`{source}` holds no prediction under `{protocol.id}`", "evaluate the model first")
    data = asked(protocol, data)
    absent = check_questions(data, samples, [line.where for line in lines])
    questions = {question.uid: question for question in data.questions}
    for line in lines:
        _check_line(line, questions[line.id], card, protocol)
    metrics, n, correct = summarise(card, samples)
    truncated = sum("cut" in sample for sample in samples)
    flags = [*data.flags, *(["partial"] if absent else []), *(["truncated"] if truncated else [])]
    return Result(
        task=card.name,
        protocol=protocol.id,
        protocol_version=protocol.version,
        title=card.title,
        metrics=metrics,
        n=n,
        n_correct=correct,
        items=len(samples),
        items_total=len(data.questions),
        truncated=truncated,
        flags=flags,
        data=DataInfo(
            source=data.source, digest=data.digest, rows_expected=card.split_named(data.split).published.rows
        ),
        seconds=0.0,
        tokens_per_second=None,
        items_resumed=len(samples),
        split=data.split,
    )


def check_questions(data: Data, samples: Sequence[Sample], places: Sequence[str]) -> list[str]:
    """Check ids and targets of sample lines against the questions of a set; return the ids that no line has.

    Args:
        data: the set.
        samples: the lines.
        places: where each stands, for messages.

    Raises:
        DataError: a question that the set has not, or whose answer, passage or group is another there.
    """
    questions = {question.uid: question for question in data.questions}
    for sample, where in zip(samples, places, strict=True):
        question = questions.get(sample["id"])
        if question is None:
            raise DataError(f"{where}: `{sample['id']}` is no question of `{data.source}`", _OTHER_DATA)
        for key, value in _expected(sample, question).items():
            if key in sample and sample[key] != value:
                raise DataError(
                    f"{where}: the {key} of `{sample['id']}` is `{sample[key]}`, in `{data.source}` it is `{value}`",
                    _OTHER_DATA,
                )
    answered = {sample["id"] for sample in samples}
    return [uid for uid in questions if uid not in answered]


def _expected(sample: Sample, question: Question) -> dict[str, Any]:
    spans = isinstance(sample["target"], list)
    target: Any = [text for _, text in question.spans] if spans else question.answer
    return {"target": target, "passage": question.passage, "group": question.group}


def _check_line(line: Predicted, question: Question, card: Card, protocol: Protocol) -> None:
    """Recompute what a line says of its own prediction.

    Raises:
        DataError: it says something else.
    """
    if card.kind == "span":
        check_span(line, [answer for _, answer in question.spans], protocol)
        return
    choice_of(line)
    found, expected = len(probabilities_of(line)), len(question.options) or protocol.options
    if expected and found != expected:
        raise DataError(
            f"{line.where}: {found} probabilities for `{line.id}`, which has {expected} options", _OTHER_DATA
        )


def check_span(line: Predicted, answers: Sequence[str], protocol: Protocol) -> None:
    """Score the text of a line against the right answers, and check what the line says of it.

    Raises:
        DataError: it says something else.
    """
    from mpeval.tasks.squad_metrics import SCORES

    text = line.sample.get("prediction")
    if not isinstance(text, str):
        raise DataError(f"{line.where} (`{line.id}`) has no text as its prediction", "evaluate the model again")
    if not answers and protocol.id == "squad/v1":  # whose questions all have one
        raise DataError(f"{line.where} (`{line.id}`) has no right answer", _OTHER_DATA)
    exact, f1 = SCORES[protocol.id](text, answers)
    for key, value in (("exact", exact), ("f1", f1), ("correct", bool(exact))):
        if line.sample.get(key) != value:
            raise DataError(
                f"{line.where} (`{line.id}`): by its text `{key}` is {value}, the line says {line.sample.get(key)}",
                "evaluate the model again; the line was changed after it was written",
            )


def from_predictions(
    path: Path,
    task: str,
    *,
    data: Path | None,
    split: str | None = None,
    allow_modified_data: bool = False,
    name: str,
    command: str,
) -> RunResults:
    """Score a file of predictions again: all of `mpeval evaluate RUN --task TASK --from-predictions FILE`.

    Args:
        path: `samples.jsonl` of an evaluation.
        task: `race`, where the file holds one protocol of it, or `race/megatron`.
        data: folder with the data in its published layout; None asks `datasets`.
        split: the set the predictions are about; None is the one that is scored by default.
        allow_modified_data: accept other contents, and flag the result.
        name: what the model is called where no results lie beside the file; such a result is `no-checkpoint`.
        command: the command line, for the document.

    Raises:
        MpevalError: whatever `rescore` and `load_data` refuse; see `attributed`.
    """
    from mpeval.data import load_data

    card, protocol = _protocol(path, task)
    chosen = split or card.split_for(protocol)
    loaded = load_data(card, data, chosen, allow_modified=allow_modified_data)
    result = rescore(card, protocol, loaded, read_predictions(path, protocol.id), str(path))
    return attributed(result, path, name, command)


def _protocol(path: Path, task: str) -> tuple[Card, Protocol]:
    """Return the card and the protocol that `task` names, of a file with one protocol of it."""
    from mpeval.tasks.cards import load_card

    name, slash, short = task.partition("/")
    card = load_card(name)
    if card.kind not in KINDS:
        raise _needs_model(card)
    if slash:
        return card, card.protocol(short)
    there = protocols_in(path)
    found = [item for item in card.protocols if item.id in there]
    if len(found) == 1:
        return card, found[0]
    listed = ", ".join(f"`{item}`" for item in there) or "nothing"
    if found:
        raise UsageError(f"`{path}` holds {listed}", f"choose one, such as `--task {found[0].id}`")
    raise DataError(f"`{path}` holds no prediction of `{name}`", f"it holds {listed}")


def attributed(result: Result, path: Path, name: str, command: str) -> RunResults:
    """Say of what weights a result is, by the `results.json` that lies beside the predictions.

    Raises:
        DataError: results that count otherwise, or are of other data.
    """
    beside = path.parent / RESULTS_FILE
    if not beside.is_file():
        return _unknown(result.model_copy(update={"flags": [*result.flags, NO_CHECKPOINT]}), name, command)
    run = read_results(beside, "")
    before = next((item for item in run.results if item.protocol == result.protocol), None)
    if before is None:
        raise DataError(f"`{beside}` has no result under `{result.protocol}`", "evaluate the model again")
    for key, old, new in (
        ("digest of the data", before.data.digest, result.data.digest),
        ("number of questions", before.n, result.n),
        ("number of right answers", before.n_correct, result.n_correct),
    ):
        if old != new:
            raise DataError(f"the {key} is `{new}` by `{path}`, `{old}` by `{beside}`", _OTHER_DATA)
    flags = [*dict.fromkeys([*before.flags, *result.flags])]
    kept = {"flags": flags, "seconds": before.seconds, "tokens_per_second": before.tokens_per_second}
    update = {"results": [result.model_copy(update=kept)], "command": command, "created_at": now()}
    return run.model_copy(update=update)


def _unknown(result: Result, name: str, command: str) -> RunResults:
    """Return the document of predictions that no results lie beside."""
    return RunResults(
        created_at=now(),
        checkpoint=CheckpointInfo(
            name=name,
            path=name,
            digest="unknown",
            format="predictions",
            version=0.0,
            iteration=0,
            grid=(0, 0),
            parameters=0,
            gelu=None,
            vocab=0,
            padded_vocab=0,
        ),
        tokenizer_digest="unknown",
        layout=Layout(tp=1, dp=1),
        dtype="unknown",
        device="unknown",
        megatron_exact=False,
        results=[result],
        command=command,
        mpeval_version=__version__,
        torch_version="unknown",
    )
