"""Average what several models said of the same questions: `mpeval ensemble`.  No model is run, and no torch.

Members are evaluations that are stored already.  Class probabilities are averaged question by question, joined by id,
and nothing is averaged unless every member has answered exactly the same questions.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpeval import __version__
from mpeval.errors import DataError, OutputError, UsageError
from mpeval.folders import unwritable, write_atomically
from mpeval.journal import RESULTS_FILE, RUN_FILE, SAMPLES_FILE
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.samples import samples_info
from mpeval.leaderboard.store import append, check_store
from mpeval.predictions.lines import Sample, choice_of, probabilities_of
from mpeval.predictions.members import Member, Wanted, check_alike, names_of, read_member
from mpeval.predictions.paired import compare_all, join
from mpeval.results import CheckpointInfo, EnsembleMember, EnsembleResults, Layout, SamplesInfo, now
from mpeval.tasks.cards import load_card

if TYPE_CHECKING:
    from mpeval.data import Data
    from mpeval.tasks.cards import Card

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval ensemble` was asked to do."""

    runs: tuple[Path, ...]
    task: str
    split: str | None = None
    data: Path | None = None
    output: Path | None = None
    json: bool = False
    record: Path | None = None
    allow_modified_data: bool = False
    quiet: bool = False
    command: str = ""


def run(options: Options) -> EnsembleResults:
    """Read the members, average them, test the average against each, write and print.

    Raises:
        MpevalError: fewer than two members, a member that is absent, or any mismatch between them.
    """
    wanted = _wanted(options)
    _check_output(options)
    members = [read_member(path, wanted) for path in options.runs]
    _check_members(members)
    samples = average(members)
    data = _published(options, wanted, members, samples)
    results = _results(options, members, samples, data)
    if options.output:
        _write(options.output, samples, results)
    _publish(results, members, options)
    return results


def _wanted(options: Options) -> Wanted:
    task, slash, short = options.task.partition("/")
    card = load_card(task)
    if card.kind not in {"choice", "pair"}:
        raise UsageError(
            f"`{task}` has no options or classes whose probabilities could be averaged",
            "an ensemble is of multiple choice or of pairs of texts, such as `--task race`",
        )
    if len(options.runs) < 2:
        raise UsageError(f"an ensemble of {len(options.runs)} is none", "give two runs or more")
    if options.allow_modified_data and not options.data:
        raise UsageError("`--allow-modified-data` is about `--data`, which is not given", "give `--data DIR` too")
    return Wanted(
        card=card,
        protocol=card.protocol(short).id if slash else None,
        split=card.split_named(options.split).name,
        data=options.data,
    )


def _check_output(options: Options) -> None:
    """Refuse a folder that holds anything but an ensemble, such as a member's, before anything is read."""
    if options.record:
        check_store(options.record)
    if options.output is None:
        return
    held = {item.name for item in options.output.iterdir()} if options.output.is_dir() else set()
    if RUN_FILE in held or (SAMPLES_FILE in held and not _is_ensemble(options.output)):
        raise OutputError(f"`{options.output}` holds an evaluation", "give another folder by `--output`")


def _is_ensemble(folder: Path) -> bool:
    try:
        content = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("schema") == EnsembleResults.model_fields["schema_"].default


def _check_members(members: Sequence[Member]) -> None:
    """Refuse a model that is there twice, and members that did not measure the same thing."""
    _refuse_twice(members, "folder", lambda member: str(member.folder.resolve()))
    _refuse_twice(members, "checkpoint", lambda member: member.run.checkpoint.digest)
    _refuse_twice(members, "predictions", lambda member: member.predictions)
    check_alike([member.result for member in members], [member.folder for member in members])


def _refuse_twice(members: Sequence[Member], what: str, value: Callable[[Member], str]) -> None:
    seen: dict[str, Member] = {}
    for member in members:
        other = seen.setdefault(value(member), member)
        if other is not member:
            raise UsageError(
                f"`{other.path}` and `{member.path}` are the same {what}: `{value(member)[:80]}`",
                "give each member once; a model counted twice weighs twice",
            )


def average(members: Sequence[Member]) -> list[Sample]:
    """Return the ensemble's sample lines: mean probabilities in float64 and the first of the most probable options.

    The mean is exactly rounded, so that the order of the members changes nothing.

    Raises:
        DataError: see `paired.join` and `predictions.choice_of`; other numbers of options for the same question.
    """
    for member in members:
        for line in member.lines:
            choice_of(line)
    joined = join(
        [[line.sample for line in member.lines] for member in members], [member.samples_file for member in members]
    )
    probabilities = [{line.id: probabilities_of(line) for line in member.lines} for member in members]
    return [_averaged(samples, [found[samples[0]["id"]] for found in probabilities], members) for samples in joined]


def _averaged(samples: Sequence[Any], probabilities: Sequence[Sequence[float]], members: Sequence[Member]) -> Sample:
    first = samples[0]
    for other, member in zip(probabilities[1:], members[1:], strict=True):
        if len(other) != len(probabilities[0]):
            raise DataError(
                f"`{first['id']}` has {len(probabilities[0])} options in `{members[0].samples_file}`, {len(other)} in "
                f"`{member.samples_file}`",
                "both must be evaluated on the same data",
            )
    mean = [math.fsum(column) / len(samples) for column in zip(*probabilities, strict=True)]
    prediction = mean.index(max(mean))
    shared = {key: first[key] for key in ("task", "id", "passage", "group", "target") if key in first}
    return {
        **shared,
        "prediction": prediction,
        "probabilities": mean,
        "correct": prediction == first["target"],
        "tokens": sum(int(sample.get("tokens", 0)) for sample in samples),
    }


def _published(options: Options, wanted: Wanted, members: Sequence[Member], samples: Sequence[Sample]) -> Data | None:
    """Check ids and targets against the published set, if its folder is given.

    Raises:
        DataError: other data than the members saw, or questions without a prediction that no `--limit` explains.
    """
    from mpeval.data import load_data
    from mpeval.predictions.rescore import check_questions
    from mpeval.tasks.likelihood import asked

    if options.data is None:
        return None
    data = load_data(wanted.card, options.data, wanted.split, allow_modified=options.allow_modified_data)
    result, name = members[0].result, members[0].samples_file
    if data.digest != result.data.digest:
        raise DataError(
            f"`{data.source}` has the digest `{data.digest}`, `{name}` is of data with `{result.data.digest}`",
            "give the data that the members were evaluated on",
        )
    data = asked(wanted.card.protocol(result.protocol), data)
    absent = check_questions(data, samples, [f"`{name}`"] * len(samples))
    if absent and "partial" not in result.flags:
        raise DataError(
            f"`{name}` lacks {len(absent):,} of {len(data.questions):,} questions of `{data.source}`, the first is "
            f"`{absent[0]}`",
            "evaluate the members again, on all questions",
        )
    return data


def _results(
    options: Options, members: Sequence[Member], samples: Sequence[Sample], data: Data | None
) -> EnsembleResults:
    from mpeval.predictions.rescore import summarise

    card: Card = load_card(members[0].result.task)
    first = members[0].result
    metrics, n, correct = summarise(card, samples)
    names = names_of([(member.run.checkpoint.name, member.path) for member in members])
    stored = [[line.sample for line in member.lines] for member in members]
    exact = ["megatron-exact"] if any(member.run.megatron_exact for member in members) else []
    flags = dict.fromkeys(flag for member in members for flag in member.result.flags)
    source = first.data.source if data is None else data.source
    return EnsembleResults(
        created_at=now(),
        task=first.task,
        protocol=first.protocol,
        protocol_version=first.protocol_version,
        title=first.title,
        split=card.split_named(options.split).name,
        data=first.data.model_copy(update={"source": source}),
        flags=[*dict.fromkeys([*flags, *(data.flags if data else ()), *exact])],
        members=[_member(member, name, card) for member, name in zip(members, names, strict=True)],
        metrics=metrics,
        n=n,
        n_correct=correct,
        comparisons=compare_all(samples, stored, _title(members), names),
        command=options.command or shlex.join(sys.argv),
        mpeval_version=__version__,
    )


def _title(members: Sequence[object]) -> str:
    return f"ensemble of {len(members)}"


def _member(member: Member, name: str, card: Card) -> EnsembleMember:
    from mpeval.predictions.rescore import summarise

    return EnsembleMember(
        name=name,
        path=str(member.path),
        checkpoint=member.run.checkpoint.digest,
        predictions=member.predictions,
        parameters=member.run.checkpoint.parameters,
        seed=member.seed,
        metrics=summarise(card, [line.sample for line in member.lines])[0],
    )


def _write(folder: Path, samples: Sequence[Sample], results: EnsembleResults) -> None:
    """Write samples, then results: a folder with results is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    lines = [json.dumps(sample, ensure_ascii=False, allow_nan=False) for sample in samples]
    write_atomically(folder / SAMPLES_FILE, "".join(line + "\n" for line in lines))
    write_atomically(folder / RESULTS_FILE, results.to_json())


def record_of(results: EnsembleResults, members: Sequence[Member], samples: SamplesInfo | None = None) -> Record:
    """Make the leaderboard record of an ensemble: its digest is that of its members' digests, sorted."""
    runs = [member.run for member in members]
    return Record(
        created_at=results.created_at,
        task=results.task,
        title=results.title,
        protocol=results.protocol,
        protocol_version=results.protocol_version,
        split=results.split,
        metric=results.metrics[0],
        other_metrics=results.metrics[1:],
        n=results.n,
        n_correct=results.n_correct,
        flags=results.flags,
        model=_checkpoint(members),
        members=[f"{member.name} {member.checkpoint}" for member in results.members],
        data=results.data,
        tokenizer_digest=_common((run.tokenizer_digest for run in runs), digest_of_members),
        layout=Layout(tp=1, dp=1),
        dtype=_common((run.dtype for run in runs), " and ".join),
        device=_common((run.device for run in runs), " and ".join),
        seconds=math.fsum(member.result.seconds for member in members),
        tokens_per_second=None,
        command=results.command,
        mpeval_version=results.mpeval_version,
        torch_version=_common((run.torch_version for run in runs), " and ".join),
        samples=samples,
    )


def _checkpoint(members: Sequence[Member]) -> CheckpointInfo:
    infos = [member.run.checkpoint for member in members]
    return CheckpointInfo(
        name=_title(members),
        path=" ".join(info.path for info in infos),
        digest=digest_of_members([info.digest for info in infos]),
        format=_common((info.format for info in infos), " and ".join),
        version=max(info.version for info in infos),
        iteration=0,
        grid=_common((info.grid for info in infos), lambda _: (0, 0)),
        parameters=sum(info.parameters for info in infos),
        gelu=_common((str(info.gelu) for info in infos if info.gelu), " and ".join) or None,
        vocab=_common((info.vocab for info in infos), max),
        padded_vocab=_common((info.padded_vocab for info in infos), max),
    )


def _common(values: Iterable[T], several: Callable[[list[T]], T]) -> T:
    """Return the value that all share, or what `several` makes of the different ones, which are sorted."""
    found = sorted(set(values), key=repr)
    return found[0] if len(found) == 1 else several(found)


def digest_of_members(digests: Sequence[str]) -> str:
    """Return the digest of what has several, whatever their order."""
    return "sha256:" + hashlib.sha256("".join(f"{digest}\n" for digest in sorted(digests)).encode()).hexdigest()


def _publish(results: EnsembleResults, members: Sequence[Member], options: Options) -> None:
    """Print the results, and append them to a leaderboard if asked to."""
    from mpeval.report import ensemble_tables, line, recorded

    if options.json:
        sys.stdout.write(results.to_json())
        sys.stdout.flush()
    if not options.quiet:
        ensemble_tables(results, stderr=options.json)
    if options.record:
        file = options.output / SAMPLES_FILE if options.output else None
        record = record_of(results, members, samples_info(file, options.record, results.protocol))
        recorded(append(options.record, [record]), options.record, stderr=options.json)
    if options.output and not options.quiet:
        line(f"results and samples are in {options.output}", stderr=options.json)
