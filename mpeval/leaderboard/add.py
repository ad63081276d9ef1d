"""The records that the folder of a run holds: an evaluation, an ensemble, a finetuned run, or several seeds' runs."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from mpeval.errors import DataError
from mpeval.finetuned import EVALUATIONS, FILE, SEEDS_FILE, read_finetuned, read_seeds, selected
from mpeval.journal import RESULTS_FILE, SAMPLES_FILE
from mpeval.leaderboard.records import Record, records_of
from mpeval.leaderboard.samples import samples_info
from mpeval.predictions.members import read_object, read_results
from mpeval.results import EnsembleResults, RunResults


def records_in(run: Path, store: Path) -> list[Record]:
    """Return the records of everything that was measured in the folder of a run, with the digests of its samples.

    Of a finetuned run, those are its evaluations but for the ones that chose among its epochs.

    Args:
        run: the folder.
        store: where the records are to go, which their paths to samples are relative to.

    Raises:
        DataError: nothing was measured there, or not to its end, or the files contradict each other.
    """
    if (run / RESULTS_FILE).is_file():
        return _of_evaluation(run, store)
    folders = [folder for one in _runs(run) for folder in _evaluations(one)]
    if not folders:
        raise _nothing(run)
    return [record for folder in folders for record in _of_evaluation(folder, store)]


def _nothing(run: Path) -> DataError:
    if not run.is_dir():
        return DataError(f"no run at `{run}`", "give the folder of an evaluation, an ensemble or a finetuned run")
    if (run / SAMPLES_FILE).is_file():
        hint = "it was not finished: run the command that began it again"
    else:
        hint = f"evaluate into it: `mpeval evaluate CHECKPOINT --task TASK --output {run}`"
    return DataError(f"`{run}` holds no `{RESULTS_FILE}`", hint)


def _runs(folder: Path) -> list[Path]:
    """Return the finetuned runs in a folder: its own, or one for each seed."""
    if (folder / SEEDS_FILE).is_file():
        return sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    return [folder] if (folder / FILE).is_file() else []


def _evaluations(run: Path) -> list[Path]:
    """Return the folders of a finetuned run's evaluations, without those of its epochs."""
    found = sorted(path.parent for path in (run / EVALUATIONS).glob(f"*/{RESULTS_FILE}"))
    return [folder for folder in found if not re.search(r"-epoch-\d+$", folder.name)]


def _of_evaluation(folder: Path, store: Path) -> list[Record]:
    if _schema(folder / RESULTS_FILE) == EnsembleResults.model_fields["schema_"].default:
        return [_of_ensemble(folder, store)]
    results = _chosen(read_results(folder / RESULTS_FILE, "evaluate the model again"), folder)
    if not results.results:
        raise DataError(f"`{folder / RESULTS_FILE}` is of no task", "evaluate the model again")
    records = records_of(results, folder / SAMPLES_FILE, store)
    for record, result in zip(records, results.results, strict=True):
        # lm-eval's tasks may have several lines of an item, one for each filter
        if record.samples and not record.harness and record.samples.rows != result.items:
            raise DataError(
                f"`{folder / SAMPLES_FILE}` holds {record.samples.rows:,} samples under `{result.protocol}`, "
                f"`{RESULTS_FILE}` is of {result.items:,}",
                "evaluate the model again, into a new folder",
            )
    return records


def _schema(path: Path) -> object:
    return read_object(path).get("schema")


def _chosen(results: RunResults, folder: Path) -> RunResults:
    """Say of the run that was chosen among several seeds that it was."""
    if folder.parent.name != EVALUATIONS or results.training is None or results.seeds is not None:
        return results
    run = folder.parent.parent
    seeds, finetuned = read_seeds(run.parent), read_finetuned(run)
    if seeds is None or finetuned is None or finetuned.training.seed != seeds.chosen:
        return results
    return selected(results, seeds.spread)


def _of_ensemble(folder: Path, store: Path) -> Record:
    """Make an ensemble's record, whose members must be where they were."""
    from mpeval.predictions.ensemble import record_of
    from mpeval.predictions.members import Wanted, read_member
    from mpeval.tasks.cards import load_card

    path = folder / RESULTS_FILE
    raw = read_object(path)
    try:
        results = EnsembleResults(schema_=raw.pop("schema"), **raw)
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"`{path}` holds no results of an ensemble: {reason}", "make the ensemble again") from error
    wanted = Wanted(card=load_card(results.task), protocol=results.protocol, split=results.split)
    members = [read_member(Path(member.path), wanted) for member in results.members]
    for said, found in zip(results.members, members, strict=True):
        if (said.checkpoint, said.predictions) != (found.run.checkpoint.digest, found.predictions):
            raise DataError(
                f"`{found.folder}` is not what the ensemble in `{folder}` was made of: its weights or predictions "
                "have another digest",
                "make the ensemble again",
            )
    return record_of(results, members, samples_info(folder / SAMPLES_FILE, store, results.protocol))
