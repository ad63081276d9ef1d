"""A record is believed as far as its samples, its data and its weights are still what they were."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import answers_to, change_line, race, write_evaluation, write_race
from recorded import metric_of, published, record

from mpeval.data import load_data
from mpeval.errors import DataError, UsageError
from mpeval.folders import data_folder
from mpeval.harness_results import protocol_of
from mpeval.leaderboard.add import records_in
from mpeval.leaderboard.hashing import damage
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.samples import find_samples, own_lines, places_below, samples_info, tasks_of
from mpeval.leaderboard.store import append, default_stores, read
from mpeval.leaderboard.verify import Places, Verdict, pick, verify
from mpeval.predictions.lines import Predicted
from mpeval.predictions.recount import UntoldError, recount
from mpeval.results import HarnessInfo, Layout
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tokenizer import find_tokenizer

PASSAGES = [("middle", 1, 3), ("high", 1, 3), ("high", 2, 2)]


def measured(folder: Path, **changes: Any) -> Path:
    """Write a RACE set, an evaluation on it and a store with its record, some fields changed; return the store."""
    data = race(write_race(folder / "data", PASSAGES))
    run = write_evaluation(folder / "runs" / "a", answers_to(data, 1), data.digest, flags=["modified-data"])
    return recorded(folder, run, **changes)


def recorded(folder: Path, run: Path, **changes: Any) -> Path:
    store = folder / "board" / "results.jsonl"
    (made,) = records_in(run, store)
    append(store, [made.model_copy(update=changes)])
    return store


def verdict(store: Path, *ids: str, **places: Path) -> Verdict:
    (found,) = verify([store], ids, Places(**places))
    return found


def samples_of(store: Path) -> Path:
    return store.parent.parent / "runs" / "a" / "samples.jsonl"


# ---- states ----


def test_a_record_is_scored_again_from_its_samples(tmp_path: Path) -> None:
    found = verdict(measured(tmp_path))
    assert (found.state, found.checked, found.notes, found.problem) == ("verified", ("samples", "scores"), (), "")
    assert isinstance(found.record, Record)
    assert found.record.samples is not None
    assert found.record.samples.file == "../runs/a/samples.jsonl"
    assert found.record.samples.rows == 8


def test_with_the_data_they_are_hashed_again_too(tmp_path: Path) -> None:
    found = verdict(measured(tmp_path), data=tmp_path / "data")
    assert (found.state, found.checked) == ("verified", ("data", "samples", "scores"))


def test_a_record_without_samples_is_only_measured_and_one_of_others_reported(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(), published({"accuracy": "63.24"})])
    assert [item.state for item in verify([store], (), Places())] == ["measured", "reported"]


def test_samples_of_another_version_of_the_protocol_are_hashed_but_not_scored(tmp_path: Path) -> None:
    found = verdict(measured(tmp_path, protocol_version="0"))
    assert (found.state, found.checked) == ("hash ok", ("samples",))
    assert "version 0 of `race/megatron`" in found.notes[0]


def test_the_projects_records_are_scored_again_without_torch() -> None:
    program = (
        "import sys\nfrom mpeval.leaderboard.store import default_stores\n"
        "from mpeval.leaderboard.verify import Places, verify\n"
        "found = verify(default_stores(), (), Places())\nassert 'torch' not in sys.modules\n"
        "print(*[item.state.replace(' ', '-') for item in found if item.state != 'reported'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    states = done.stdout.split()
    assert states.count("verified") >= 13
    assert set(states) <= {"verified", "hash-ok"}  # which those are whose items' lengths only the data tell
    named = [one.samples for one in read(*default_stores()) if isinstance(one, Record) and one.samples]
    assert len(states) == len(named)


def test_only_the_records_asked_for_are_checked(tmp_path: Path) -> None:
    store = measured(tmp_path)
    append(store, [record()])
    (first, second) = read(store)
    assert verdict(store, first.record_id[:15]).state == "verified"
    assert verdict(store, second.record_id.removeprefix("sha256:")[:10]).state == "measured"
    assert len(verify([store], [first.record_id, second.record_id, first.record_id], Places())) == 2


def test_ids_that_are_nobodys_or_several_records_name_candidates(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(digest=f"sha256:{number}") for number in range(20)])
    lines = read(store)
    first = next(digit for digit in "0123456789abcdef" if sum(one.record_id[7] == digit for one in lines) > 1)
    with pytest.raises(DataError, match="records have an id that begins") as several:
        pick(lines, first)
    assert several.value.hint.count("`sha256:") >= 2
    for name in ("zzz", ""):
        with pytest.raises(DataError, match="no record has an id that begins") as none:
            pick(lines, name)
        assert lines[-1].record_id[:19] in none.value.hint


# ---- one byte ----


def test_no_byte_of_the_samples_can_change_unseen(tmp_path: Path) -> None:
    store = measured(tmp_path)
    path = samples_of(store)
    whole = path.read_bytes()
    for at in {*range(whole.index(b"\n") + 2), *range(0, len(whole), 5), len(whole) - 1}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = verdict(store)
        assert found.state == "FAILED", whole[max(0, at - 10) : at + 10]
        assert str(path.name) in found.problem
        assert found.record is not None


def test_no_byte_of_compressed_samples_can_change_what_they_say(tmp_path: Path) -> None:
    store = measured(tmp_path)
    path = samples_of(store)
    packed = path.with_name("samples.jsonl.gz")
    whole = gzip.compress(path.read_bytes(), mtime=0)
    content = path.read_bytes()
    path.unlink()
    unseen = 0
    for at in range(len(whole)):
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = verdict(store)
        if found.state != "FAILED":  # a byte of the header that says when and where it was compressed
            assert gzip.decompress(packed.read_bytes()) == content
            unseen += 1
        else:
            assert packed.name in found.problem
    assert unseen < 10
    packed.write_bytes(whole)
    assert verdict(store).state == "verified"


def test_a_changed_line_of_the_store_fails_by_its_number(tmp_path: Path) -> None:
    store = measured(tmp_path)
    append(store, [record()])
    text = store.read_text()
    store.write_text(text.replace('"n":8', '"n":9'))
    found = verify([store], (), Places())
    assert [(item.line, item.state) for item in found] == [(1, "FAILED"), (2, "measured")]
    assert "line 1 was changed after it was written" in found[0].problem


# ---- numbers that are not those of the samples ----


@pytest.mark.parametrize("place", ["metric", "other"])
@pytest.mark.parametrize("key", ["value", "stderr", "low", "high"])
@pytest.mark.parametrize(("more", "state"), [(1e-9, "FAILED"), (1e-14, "verified")])
def test_every_number_of_a_metric_is_compared(place: str, key: str, more: float, state: str, tmp_path: Path) -> None:
    store = measured(tmp_path)
    (made,) = read(store)
    index = {"metric": -1, "other": len(made.other_metrics) - 1}[place]
    metrics = [*made.other_metrics, made.metric]
    metrics[index] = metrics[index].model_copy(update={key: getattr(metrics[index], key) + more})
    other = tmp_path / "board" / "other.jsonl"
    append(other, [made.model_copy(update={"metric": metrics[-1], "other_metrics": metrics[:-1]})])
    found = verdict(other)
    assert found.state == state
    if state == "FAILED":
        assert f"{key} of `{metrics[index].name}`" in found.problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"n": 7}, "items"), ({"n_correct": 0}, "right answers"), ({"other_metrics": []}, "`accuracy_high`")],
)
def test_counts_and_names_are_compared(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = verdict(measured(tmp_path, **changes))
    assert found.state == "FAILED"
    assert said in found.problem


@pytest.mark.parametrize("changes", [{"correct": True}, {"prediction": 3}, {"probabilities": [0.9, 0.9, 0.1, 0.1]}])
def test_a_sample_that_contradicts_itself_is_not_believed_even_with_a_digest(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    lines = answers_to(data, 1, skill=-3.0)
    wrong = next(number for number, line in enumerate(lines) if not line["correct"] and line["prediction"] != 3)
    run = write_evaluation(tmp_path / "runs" / "a", lines, data.digest, flags=["modified-data"])
    change_line(run, wrong + 1, **changes)
    found = verdict(recorded(tmp_path, run))
    assert found.state == "FAILED"
    assert f"line {wrong + 1}" in found.problem
    assert found.checked == ("samples",)


def test_a_question_twice_or_too_few_rows_are_refused(tmp_path: Path) -> None:
    store = measured(tmp_path)
    path = samples_of(store)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    assert "are both of `RACE/test" in verdict(store).problem
    path.write_text("".join(lines[1:]))
    assert "has 7 samples under `race/megatron`, the record says 8" in verdict(store).problem


def test_a_record_of_too_few_items_fails_even_if_its_samples_agree(tmp_path: Path) -> None:
    found = verdict(measured(tmp_path, flags=[]))
    assert (found.state, found.checked) == ("FAILED", ("samples", "scores"))
    assert "it is of 8 items and not flagged `partial`" in found.problem


def test_records_of_two_layouts_must_agree(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    metrics = [metric_of(0.45), metric_of(0.46)]
    append(store, [record(metric=metric, layout=Layout(tp=tp, dp=1)) for tp, metric in enumerate(metrics, start=1)])
    found = verify([store], (), Places())
    assert [item.state for item in found] == ["measured", "FAILED"]
    assert "tp 2 x dp 1 and tp 1 x dp 1 must agree" in found[1].problem


# ---- where samples are ----


def test_the_order_of_lines_and_those_of_other_tasks_change_nothing(tmp_path: Path) -> None:
    store = measured(tmp_path)
    path = samples_of(store)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps({"task": "piqa/pair", "id": "1"}) + "\n", *lines[::-1]]))
    assert verdict(store).state == "verified"


def test_samples_that_moved_are_found_below_runs_by_the_name_of_their_folder(tmp_path: Path) -> None:
    store = measured(tmp_path)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    found = verdict(store)
    assert (found.state, found.checked) == ("measured", ())
    assert "`../runs/a/samples.jsonl`" in found.notes[0]
    for folder in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "a"):
        assert verdict(store, runs=folder).state == "verified"
    (tmp_path / "elsewhere" / "a").rename(tmp_path / "elsewhere" / "b")
    for folder in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "b"):
        assert verdict(store, runs=folder).state == "measured"


def test_a_group_of_lm_eval_has_the_lines_of_its_tasks() -> None:
    harness = HarnessInfo(version="0.4", task_version="1", config="sha256:c", shots=5, tasks=["one", "two"])
    alone = harness.model_copy(update={"tasks": []})
    assert tasks_of("lm-eval/group/5-shot", harness) == {"lm-eval/one/5-shot", "lm-eval/two/5-shot"}
    assert tasks_of("lm-eval/one/5-shot", alone) == {protocol_of("one", 5)}
    assert tasks_of("lm-eval/group", harness.model_copy(update={"shots": 0})) == {"lm-eval/one", "lm-eval/two"}


@pytest.mark.parametrize("file", ["", ".", "..", "x" * 5000, "a\0b"])
def test_samples_that_no_file_can_be_called_are_not_there(file: str, tmp_path: Path) -> None:
    made = samples_info(samples_of(measured(tmp_path)), None, "race/megatron")
    assert made is not None
    assert find_samples(made.model_copy(update={"file": file}), Path("results.jsonl"), tmp_path) is None


def test_only_files_with_checksums_are_said_to_be_damaged_by_them(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(b"\x80\x02 of the older form")
    assert damage([tmp_path]) == ""
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut short")
    assert damage([tmp_path]) == f"; damaged by their own checksums: `{tmp_path / 'cut.pt'}`"


def test_places_below_a_folder_need_more_than_a_common_name(tmp_path: Path) -> None:
    root = tmp_path / "a"
    assert places_below(root, "../runs/a/samples.jsonl") == [
        root / "runs/a/samples.jsonl",
        root / "a/samples.jsonl",
        root / "samples.jsonl",
    ]
    assert places_below(root, "demo-gpt") == [root / "demo-gpt"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    store = measured(tmp_path)
    for option in ("runs", "data", "checkpoints"):
        with pytest.raises(UsageError, match=f"`--{option} "):
            verify([store], (), Places(**{option: tmp_path / "none"}))


# ---- data ----


def test_other_data_fail_and_absent_data_are_said_to_be_absent(tmp_path: Path) -> None:
    store = measured(tmp_path)
    (tmp_path / "empty").mkdir()
    absent = verdict(store, data=tmp_path / "empty")
    assert absent.state == "verified"
    assert "no RACE test set in" in absent.notes[0]
    path = next((tmp_path / "data").rglob("1.txt"))
    path.write_text(path.read_text().replace("What", "Whet"))
    changed = verdict(store, data=tmp_path / "data")
    assert changed.state == "FAILED"
    assert "RACE" in changed.problem
    assert "the record says sha256:" in changed.problem


def test_targets_that_are_not_the_datas_fail(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    lines = answers_to(data, 1)
    wrong = next(line for line in lines if line["correct"])
    wrong.update(target=(wrong["target"] + 1) % 4, correct=False)
    run = write_evaluation(tmp_path / "runs" / "a", lines, data.digest, flags=["modified-data"])
    store = recorded(tmp_path, run)
    assert verdict(store).state == "verified"
    found = verdict(store, data=tmp_path / "data")
    assert found.state == "FAILED"
    assert "the target of" in found.problem


def test_questions_that_nobody_answered_fail_unless_the_record_is_partial(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    run = write_evaluation(tmp_path / "runs" / "a", answers_to(data, 1)[1:], data.digest)
    store = recorded(tmp_path, run)
    assert "7 samples are not all 8 questions" in verdict(store, data=tmp_path / "data").problem
    other = tmp_path / "board" / "other.jsonl"
    append(other, [read(store)[0].model_copy(update={"flags": ["partial"]})])
    assert verdict(other, data=tmp_path / "data").state == "verified"


# ---- tasks whose samples are log-probabilities ----


def made_lines(task: Any, seed: int = 3) -> list[dict[str, Any]]:
    """Make a sample of every item of a task from random log-probabilities, as a run would."""
    from mpeval.items import Scored

    random = np.random.default_rng(seed)
    lines = []
    for item in task.items:
        request = item.request
        target = np.asarray(request.target)
        logs = -random.exponential(2.0, len(target)).astype(np.float32)
        greedy = bool(random.random() < 0.4)
        scored = Scored(log_probabilities=logs, best=target if greedy else target[::-1] * 0 + 5, greedy=greedy)
        lines.append(task.judge(item, scored))
    return lines


def as_predicted(lines: Sequence[dict[str, Any]], folder: Path) -> list[Predicted]:
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return list(own_lines(path, {lines[0]["task"]}).values())


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("lambada/megatron-strict", "demo-gpt"),
        ("lambada/megatron-last-token", "demo-gpt"),
        ("lambada/lm-eval-openai", "demo-gpt"),
        ("wikitext103/disjoint", "demo-gpt"),
        ("wikitext103/megatron", "demo-gpt"),
        ("wikitext103/lm-eval", "demo-gpt"),
        ("wikitext103/masked", "demo-bert"),
    ],
)
def test_scores_of_language_models_come_out_as_the_task_makes_them(name: str, checkpoint: str, tmp_path: Path) -> None:
    card = load_card(name.partition("/")[0])
    protocol = card.protocol(name)
    data = load_data(card, data_folder("tasks") / "samples")
    tokenizer = find_tokenizer(data_folder("checkpoints") / checkpoint, [])
    task = build_task(card, protocol, data, tokenizer, 128)
    lines = made_lines(task)
    metrics, n, correct = task.summarise(lines)
    again = recount(card, protocol, as_predicted(lines, tmp_path), data, partial=False)
    assert again[1:] == (n, correct)
    assert [metric.name for metric in again[0]] == [metric.name for metric in metrics]
    for old, new in zip(metrics, again[0], strict=True):
        values = [[getattr(one, key) for key in ("value", "loss", "stderr", "low", "high")] for one in (old, new)]
        assert [value is None for value in values[0]] == [value is None for value in values[1]]
        assert [value or 0 for value in values[0]] == pytest.approx([value or 0 for value in values[1]], rel=1e-12)
    told = card.kind == "cloze" or protocol.family == "bert"
    if told:
        assert recount(card, protocol, as_predicted(lines, tmp_path), None, partial=False)[1:] == (n, correct)
    else:
        with pytest.raises(UntoldError, match="--data"):
            recount(card, protocol, as_predicted(lines, tmp_path), None, partial=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"correct": True, "prediction": "other"}, "with another prediction than its target"),
        ({"log_probability": None}, "`log_probability` is None"),
        ({"log_probability": float("inf")}, "`log_probability` is inf"),
        ({"log_probability": 10**400}, "`log_probability` is a number of many digits"),
        ({"log_probability": -1e200}, "`log_probability` is -1e\\+200"),
        ({"correct": "yes"}, "`correct` is yes"),
        ({"target": 1}, "has no `target`"),
    ],
)
def test_a_passage_that_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    card = load_card("lambada")
    sample = {"task": "lambada/megatron-strict", "id": "00000", "target": " x", "prediction": " x", "correct": True}
    line = Predicted(sample={**sample, "log_probability": -1.0, **changes}, where="`f` line 1")
    with pytest.raises(DataError, match=said):
        recount(card, card.protocol("megatron-strict"), [line], None, partial=False)


@pytest.mark.parametrize(("task", "target"), [("qqp", "x"), ("race", None), ("squad", [1]), ("squad", "x")])
def test_a_target_is_what_the_task_asks_for(task: str, target: Any) -> None:
    card = load_card(task)
    line = Predicted(sample={"task": "x", "id": "1", "target": target}, where="`f` line 1")
    with pytest.raises(DataError, match="has no `target`"):
        recount(card, card.protocols[0], [line], None, partial=False)


def test_a_question_of_squad_1_has_an_answer() -> None:
    card = load_card("squad")
    line = Predicted(sample={"task": "squad/v1", "id": "q", "target": [], "prediction": ""}, where="`f` line 1")
    with pytest.raises(DataError, match="has no right answer"):
        recount(card, card.protocol("v1"), [line], None, partial=False)


@pytest.mark.parametrize("key", ["passage", "group"])
def test_a_group_is_a_text(key: str) -> None:
    card = load_card("race")
    line = Predicted(sample={"task": "race/megatron", "id": "1", "target": 1, key: math.nan}, where="`f` line 1")
    with pytest.raises(DataError, match=f"has no text as its `{key}`"):
        recount(card, card.protocol("megatron"), [line], None, partial=False)


def test_no_samples_are_no_score() -> None:
    card = load_card("lambada")
    with pytest.raises(DataError, match="there are no samples"):
        recount(card, card.protocols[0], [], None, partial=False)


@pytest.mark.parametrize(
    "shares", [None, [], [[1, 2]], [["a", 1, 1]], "x", [[0, math.nan, 1]], [[0, 1, 0]], [[0, 1e200, 1]]]
)
def test_a_window_without_its_losses_is_refused(shares: Any) -> None:
    card = load_card("wikitext103")
    line = Predicted(sample={"task": "x", "id": "window-0", "documents": shares}, where="`f` line 1")
    with pytest.raises(DataError, match="`documents` is"):
        recount(card, card.protocol("masked"), [line], None, partial=False)
