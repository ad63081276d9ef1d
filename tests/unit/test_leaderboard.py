"""Records are never lost, never changed unseen, ranked only where they may be, and harmless on every page."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from parsing import Page
from recorded import ACCURACY, CHECKPOINT, metric_of, record

from mpeval.errors import DataError, OutputError
from mpeval.leaderboard.boards import COLUMNS, boards, under
from mpeval.leaderboard.pages import check, publish
from mpeval.leaderboard.records import Record, records_of
from mpeval.leaderboard.store import append, check_store, default_store, default_stores, read
from mpeval.results import (
    CheckpointInfo,
    DataInfo,
    Layout,
    Result,
    RunResults,
    SeedSpread,
    TrainingInfo,
)

TRAINING = TrainingInfo(
    seed=1236,
    questions=87_866,
    steps=8238,
    epochs=3,
    recipe="race-336m",
    learning_rate=2e-5,
    batch=32,
    selection="dev median of 5 seeds",
)
SEEDS = SeedSpread(
    seeds=[1234, 1235, 1236, 1237, 1238],
    split="dev",
    metric="accuracy",
    median=0.842,
    deviation=0.0031,
    lowest=0.838,
    highest=0.8465,
)
MEMBERS = ["seed-1234 sha256:a", "seed-1235 sha256:b"]
OLD_LINE = (
    '{"command":"mpeval evaluate x --task lambada","created_at":"2026-11-23T12:10:41Z","data":{"digest":"sha256:dd",'
    '"rows_expected":5153,"source":"lambada_test.jsonl"},"device":"cpu","dtype":"float32","flags":[],"kind":"measured",'
    '"layout":{"dp":1,"tp":1},"metric":{"direction":"max","high":0.47,"interval":"wilson","loss":null,"low":0.43,'
    '"name":"accuracy","stderr":0.01,"unit":"proportion","value":0.45},"model":{"digest":"sha256:aa",'
    '"format":"megatron-core","gelu":"tanh","grid":[2,1],"iteration":1,"name":"x","padded_vocab":50304,'
    '"parameters":100,"path":"x","version":3.0,"vocab":50257},"mpeval_version":"0.1.0","n":5153,"n_correct":2319,'
    '"other_metrics":[],"protocol":"lambada/megatron-strict","protocol_version":"1",'
    '"record_id":"sha256:7b415eb6cd15009cda3a07146b65b08c4bae37efde0d3cf71ac5a0986661f63e",'
    '"schema":"mpeval.result/1","seconds":1.0,"task":"lambada","title":"LAMBADA","tokenizer_digest":"sha256:tt",'
    '"tokens_per_second":null,"torch_version":"2.13.0"}'
)
"""A record as it was written before splits, training, seeds and members were."""


def append_many(path: str, worker: int, count: int) -> None:
    """Append one record at a time, each of a checkpoint of its own."""
    for number in range(count):
        append(Path(path), [record(digest=f"sha256:{worker}-{number}")])


def append_together(path: str, start: Any, count: int) -> None:
    """Append the same records as every other worker, each at the same moment."""
    for number in range(count):
        start.wait(30)
        append(Path(path), [record(digest=f"sha256:{number}")])


# ---- the store ----


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "results.jsonl"
    made = record(flags=["partial"], other_metrics=[metric_of(0.2, name="other")], name='né "x"\n\u2028')
    assert append(store, [made]) == 1
    (back,) = read(store)
    assert back == made.model_copy(update={"record_id": back.record_id})
    assert back.record_id == back.identity() == made.identity()
    assert store.read_text(encoding="utf-8").count("\n") == 1


def test_four_processes_appending_at_once_lose_nothing(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(str(store), worker, 25)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    found = {item.model.digest for item in read(store)}
    assert found == {f"sha256:{worker}-{number}" for worker in range(4) for number in range(25)}
    assert len(store.read_bytes().splitlines()) == 100


def test_four_processes_recording_the_same_at_once_add_it_once(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=append_together, args=(str(store), start, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(item.model.digest for item in read(store)) == sorted(f"sha256:{number}" for number in range(20))


@pytest.mark.parametrize("kept", [1, 10, 200, -2, -1])
def test_a_line_that_a_crash_cut_short_is_fenced_off(kept: int, tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(digest="sha256:1")])
    torn = record(digest="sha256:2").line().encode()[:kept]
    store.write_bytes(store.read_bytes() + torn)
    assert append(store, [record(digest="sha256:3")]) == 1
    lines = store.read_bytes().split(b"\n")
    assert lines[1] == torn
    assert json.loads(lines[2])["model"]["digest"] == "sha256:3"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(digest="sha256:1")])
    store.write_bytes(store.read_bytes().removesuffix(b"\n"))
    append(store, [record(digest="sha256:2")])
    assert [item.model.digest for item in read(store)] == ["sha256:1", "sha256:2"]


def test_a_torn_line_is_reported_with_its_number(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(digest="sha256:1")])
    store.write_bytes(store.read_bytes() + b'{"half')
    with pytest.raises(DataError, match="line 2 is no record") as raised:
        read(store)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"value":0.45', '"value":0.95'),
        ('"n":5153', '"n":5154'),
        ('"name":"gpt-345m"', '"name":"gpt-8b"'),
        ('"flags":["partial"]', '"flags":[]'),
        ('"digest":"sha256:aa"', '"digest":"sha256:ab"'),
        ('"command":"mpeval', '"command":"mpevil'),
        ('"record_id":"sha256:', '"record_id":"sha256:0'),
    ],
)
def test_a_line_changed_after_it_was_written_is_detected(old: str, new: str, tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(digest="sha256:0"), record(flags=["partial"])])
    first, second, _ = store.read_text().split("\n")
    assert second.count(old) == 1
    store.write_text(f"{first}\n{second.replace(old, new)}\n")
    with pytest.raises(DataError, match="line 2 was changed after it was written"):
        read(store)


@pytest.mark.parametrize(
    "line", ["{}", "[]", "7", "null", '{"schema": "mpeval.result/1"}', "text", '{"schema": "x", "extra": 1}']
)
def test_a_line_that_is_no_record_is_an_error_with_its_number(line: str, tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    store.write_text(f"{record().line()}\n{line}\n")
    with pytest.raises(DataError, match="line 2 is no record"):
        read(store)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"schema": "mpeval.result/1"}', "it has no `kind`"),
        ('{"kind": "measured"}', "it has no `schema`"),
        ('{"schema": "mpeval.result/1", "kind": "guessed"}', "no kind is 'guessed'"),
        (record().line().replace('"n":5153', '"n":"many"'), "`n`: input should be a valid integer"),
    ],
)
def test_a_line_that_is_no_record_is_said_what_it_lacks(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(f"{record().line()}\n{line}\n")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "results.jsonl")


def test_a_record_of_another_schema_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    store.write_text(record().line().replace("mpeval.result/1", "mpeval.result/99") + "\n")
    with pytest.raises(DataError, match="line 1"):
        read(store)


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no leaderboard at") as raised:
        read(tmp_path / "none.jsonl")
    assert "--record" in raised.value.hint


def test_a_store_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        append(tmp_path / "file" / "results.jsonl", [record()])


def test_a_text_that_is_no_unicode_is_neither_written_nor_read(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record()])
    before = store.read_bytes()
    with pytest.raises(DataError, match=r"no Unicode: .*\\udcff"):
        append(store, [record(0.5, path="models/\udcff")])
    assert store.read_bytes() == before
    store.write_bytes(before.replace(b'runs/gpt-345m"', b'runs/\\udcff"'))
    with pytest.raises(DataError, match="line 1 is no record"):
        read(store)


def test_a_name_that_is_too_long_is_no_traceback(tmp_path: Path) -> None:
    store = tmp_path / ("x" * 300)
    with pytest.raises(DataError, match="File name too long"):
        read(store)
    with pytest.raises(OutputError, match="File name too long") as raised:
        check_store(store, "--store")
    assert "by `--store`" in raised.value.hint


def test_the_same_measurement_is_added_once_whatever_its_layout_and_time(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    assert append(store, [record()]) == 1
    again = record(layout=Layout(tp=4, dp=2), created_at="2027-01-01T00:00:00Z", seconds=1.0, device="NVIDIA")
    assert append(store, [again]) == 0
    assert len(read(store)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "lambada/megatron-last-token"},
        {"protocol_version": "2"},
        {"digest": "sha256:other"},
        {"dtype": "bfloat16"},
        {"n": 5152},
        {"value": 0.46},
        {"data": DataInfo(source="x", digest="sha256:other", rows_expected=5153)},
        {"flags": ["megatron-exact"]},
        {"gelu": "erf"},
        {"tokenizer_digest": "sha256:other"},
        {"split": "dev"},
        {"members": MEMBERS},
        {"training": TRAINING},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_measurement_is_added_even_if_its_value_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record()])
    assert append(store, [record(**changes)]) == 1
    assert len(read(store)) == 2


def test_a_run_becomes_one_record_per_result() -> None:
    result = Result(
        task="lambada",
        protocol="lambada/megatron-strict",
        protocol_version="1",
        title="LAMBADA",
        metrics=[ACCURACY, metric_of(9.0, name="target_perplexity")],
        n=10,
        n_correct=4,
        items=10,
        items_total=20,
        truncated=0,
        flags=["partial"],
        data=DataInfo(source="x", digest="sha256:dd", rows_expected=5153),
        seconds=1.0,
        tokens_per_second=None,
        items_resumed=0,
        split="dev",
    )
    run = RunResults(
        created_at="2026-01-02T03:04:05Z",
        checkpoint=CheckpointInfo(**CHECKPOINT),
        tokenizer_digest="sha256:tt",
        layout=Layout(tp=1, dp=1),
        dtype="float32",
        device="cpu",
        megatron_exact=True,
        results=[result, result.model_copy(update={"protocol": "lambada/lm-eval-openai"})],
        command="mpeval evaluate",
        mpeval_version="0.1.0",
        torch_version="2.13.0",
        training=TRAINING,
        seeds=SEEDS,
    )
    made = records_of(run)
    assert [(item.split, item.training, item.seeds) for item in made] == [("dev", TRAINING, SEEDS)] * 2
    assert [item.protocol for item in made] == ["lambada/megatron-strict", "lambada/lm-eval-openai"]
    assert made[0].metric == ACCURACY
    assert [metric.name for metric in made[0].other_metrics] == ["target_perplexity"]
    assert made[0].flags == ["partial", "megatron-exact"]
    assert not made[0].ranked


# ---- what later versions added ----


def test_a_record_from_before_is_read_with_its_id(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    store.write_text(OLD_LINE + "\n")
    (old,) = read(store)
    assert old.line() == OLD_LINE
    assert (old.split, old.training, old.seeds, old.members) == ("", None, None, [])
    assert old.part == "test"


def test_what_a_record_does_not_have_is_not_on_its_line() -> None:
    plain = json.loads(record().line())
    assert not {"split", "training", "seeds", "members"} & plain.keys()
    full = json.loads(record(split="dev", training=TRAINING, seeds=SEEDS, members=MEMBERS).line())
    assert {"split", "training", "seeds", "members"} <= full.keys()


def test_a_record_with_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    made = record(split="dev", training=TRAINING, seeds=SEEDS, members=MEMBERS)
    append(store, [made])
    (back,) = read(store)
    assert back == made.model_copy(update={"record_id": back.record_id})
    assert back.record_id == made.identity()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"split":"train"', '"split":"test"'),
        ('"seed":1236', '"seed":1237'),
        ('"deviation":0.0031', '"deviation":0.0001'),
        ("seed-1234 sha256:a", "seed-1234 sha256:c"),
        (',"split":"train"', ""),
    ],
)
def test_a_change_to_what_was_added_is_detected(old: str, new: str, tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(split="train", training=TRAINING, seeds=SEEDS, members=MEMBERS)])
    text = store.read_text()
    assert text.count(old) == 1
    store.write_text(text.replace(old, new))
    with pytest.raises(DataError, match="line 1 was changed after it was written"):
        read(store)


def test_the_same_test_set_measured_before_splits_had_names_is_not_added_again(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record()])
    assert append(store, [record(split="test")]) == 0
    assert append(store, [record(split="dev")]) == 1


def test_an_ensemble_of_the_same_members_in_another_order_is_added_once(tmp_path: Path) -> None:
    store = tmp_path / "results.jsonl"
    append(store, [record(members=MEMBERS)])
    assert append(store, [record(members=["renamed sha256:b", "seed-1234 sha256:a"])]) == 0
    assert append(store, [record(members=[*MEMBERS, "seed-3 sha256:c"])]) == 1


def test_splits_have_boards_of_their_own() -> None:
    found = boards([record(0.5, split="dev"), record(0.6, split="test"), record(0.7)])
    assert [(board.split, [row.cells["value"] for row in board.rows]) for board in found] == [
        ("dev", ["50.00 %"]),
        ("test", ["70.00 %", "60.00 %"]),
    ]


def test_columns_of_seeds_are_only_where_a_row_has_one() -> None:
    plain, finetuned = record(protocol="a/x"), record(protocol="b/x", training=TRAINING, seeds=SEEDS)
    without, with_seeds = boards([plain, finetuned, record(protocol="b/x", digest="sha256:other")])
    assert not {"seed", "seed sd"} & {*without.columns, *without.terminal_columns}
    columns = with_seeds.columns
    assert columns[columns.index("interval") + 1 :][:2] == ("seed", "seed sd")
    rows = {row.cells["checkpoint"]: row.cells for row in with_seeds.rows}
    assert rows["sha256:aa"]["seed"] == "1236"
    assert rows["sha256:aa"]["seed sd"] == "0.31 (5 seeds, dev: 83.80 - 84.65 %)"
    assert (rows["sha256:other"]["seed"], rows["sha256:other"]["seed sd"]) == ("", "")


def test_the_terminal_has_no_column_with_nothing_in_it() -> None:
    (plain,) = boards([record()])
    assert plain.terminal_columns == ("rank", "model", "value", "interval", "n", "kind")
    (flagged,) = boards([record(flags=["partial"], metric=metric_of(0.4, low=None, high=None))])
    assert flagged.terminal_columns == ("rank", "model", "value", "n", "kind", "flags")
    assert {"interval", "flags"} <= {*flagged.columns}


def test_a_single_seed_has_no_spread() -> None:
    (board,) = boards([record(training=TRAINING.model_copy(update={"selection": ""}))])
    assert "seed" in board.columns
    assert "seed sd" not in board.columns


def test_accuracies_of_groups_are_columns() -> None:
    groups = [metric_of(0.9, name="accuracy_middle"), metric_of(0.8, name="accuracy_high")]
    perplexity = metric_of(12.0, name="token_perplexity", unit="perplexity", direction="min")
    (board,) = boards([record(other_metrics=[*groups, perplexity]), record(digest="sha256:b", name="other")])
    extra = [column for column in board.columns if column not in COLUMNS]
    assert [board.headings[column] for column in extra] == ["accuracy middle", "accuracy high"]
    assert [[row.cells[column] for column in extra] for row in board.rows] == [["90.00 %", "80.00 %"], ["", ""]]


def test_the_pages_show_seeds_groups_training_and_members(tmp_path: Path) -> None:
    groups = [metric_of(0.9, name="accuracy_middle")]
    records = [
        record(0.83, split="dev", training=TRAINING, seeds=SEEDS, other_metrics=groups, name="seed-1236"),
        record(0.85, split="dev", members=MEMBERS, name="ensemble of 2", digest="sha256:e", other_metrics=groups),
    ]
    markdown, page = pages_of(tmp_path, records)
    for text in (markdown, page):
        for said in ("accuracy middle", "seed sd", "1236", "0.31 (5 seeds, dev: 83.80 - 84.65 %)", "90.00 %"):
            assert said in text
        assert "finetuned by race-336m: 87,866 questions, 3 epochs, 8,238 steps of 32, learning rate 2e-05" in text
        assert "dev median of 5 seeds" in text
        assert "members: seed-1234 sha256:a, seed-1235 sha256:b" in text
    assert "## LAMBADA dev: lambada/megatron-strict" in markdown
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")}
    assert widths == {len(boards(records)[0].columns) + 2}


# ---- ranking ----


def names_and_ranks(records: Sequence[Record]) -> list[tuple[str, str]]:
    (board,) = boards(records)
    return [(row.cells["model"], row.cells["rank"]) for row in board.rows]


def test_the_best_accuracy_and_the_lowest_perplexity_come_first() -> None:
    high = [record(0.3, name="c"), record(0.9, name="a"), record(0.5, name="b")]
    assert names_and_ranks(high) == [("a", "1"), ("b", "2"), ("c", "3")]
    low = {"unit": "perplexity", "direction": "min", "name": "adjusted_perplexity"}
    perplexities = [record(metric=metric_of(value, **low), name=name) for value, name in ((30.0, "b"), (20.0, "a"))]
    assert names_and_ranks(perplexities) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize(
    "flag",
    [
        *("partial", "sample-rows", "modified-data", "unverified-data", "window-512", "truncated", "megatron-exact"),
        "no-checkpoint",
    ],
)
def test_a_flagged_record_comes_last_and_has_no_rank(flag: str) -> None:
    records = [record(0.99, name="flagged", flags=[flag]), record(0.4, name="a"), record(0.2, name="b")]
    assert names_and_ranks(records) == [("a", "1"), ("b", "2"), ("flagged", "-")]


def test_a_rank_is_a_range_where_intervals_overlap() -> None:
    records = [record(value, name=name) for value, name in ((0.9, "a"), (0.895, "b"), (0.5, "c"), (0.4, "d"))]
    flagged = record(0.897, name="e", flags=["partial"])
    assert names_and_ranks([*records, flagged]) == [("a", "1-2"), ("b", "1-2"), ("c", "3"), ("d", "4"), ("e", "-")]


def test_a_number_by_another_version_of_the_protocol_is_shown_but_not_ranked() -> None:
    old = record(0.99, name="old", protocol_version="0")
    (board,) = boards([old, record(0.4, name="a")])
    assert [(row.cells["model"], row.cells["rank"]) for row in board.rows] == [("a", "1"), ("old", "-")]
    assert [row.cells["flags"] for row in board.rows] == ["", "protocol-version-0"]
    assert record(0.99, protocol="lambada/unknown", protocol_version="0").ranked


def test_flagged_records_are_in_order_among_themselves() -> None:
    records = [record(value, name=name, flags=["partial"]) for value, name in ((0.1, "low"), (0.8, "high"))]
    assert names_and_ranks(records) == [("high", "-"), ("low", "-")]


def test_equal_values_are_told_apart_by_age() -> None:
    late, early = (
        record(0.5, name=name, created_at=f"202{year}-01-01T00:00:00Z") for name, year in (("b", 7), ("a", 6))
    )
    assert [name for name, _ in names_and_ranks([late, early])] == ["a", "b"]


def test_equal_values_share_their_ranks() -> None:
    ranks = [rank for _, rank in names_and_ranks([record(0.5, name=name) for name in "abc"])]
    assert ranks == ["1-3"] * 3


def test_protocols_and_metrics_are_never_ranked_together() -> None:
    records = [
        record(0.5),
        record(0.9, protocol="lambada/megatron-last-token"),
        record(metric=metric_of(0.7, name="z")),
    ]
    found = boards(records)
    assert [(board.protocol, board.metric) for board in found] == [
        *(("lambada/megatron-last-token", "accuracy"), ("lambada/megatron-strict", "accuracy")),
        ("lambada/megatron-strict", "z"),
    ]
    assert all(len(board.rows) == 1 for board in found)


def test_boards_are_chosen_by_protocol_or_task() -> None:
    found = boards([record(), record(protocol="lambada/other"), record(protocol="race/all")])
    for names, protocols in (
        ([], ["lambada/megatron-strict", "lambada/other", "race/all"]),
        (["lambada"], ["lambada/megatron-strict", "lambada/other"]),
        (["race/all", "lambada/other"], ["lambada/other", "race/all"]),
    ):
        assert [board.protocol for board in under(found, names)] == protocols
    with pytest.raises(DataError, match="no record under `lambda`") as raised:
        under(found, ["lambda"])
    assert "lambada" in raised.value.hint


# ---- pages ----

HOSTILE = (
    "<script>alert(1)</script>",
    "a | b | c",
    "line\nbreak\r\n| x",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "`code` *bold* _under_ \\| {{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
    "https://example.org/tracker.png",
    "![x](https://example.org/x.png)",
)


def pages_of(folder: Path, records: Sequence[Record]) -> tuple[str, str]:
    """Publish records; return Markdown and HTML."""
    append(folder / "results.jsonl", records)
    markdown, html = publish([folder / "results.jsonl"], folder / "pages")
    return markdown.read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_only_text_on_the_html_page(text: str, tmp_path: Path) -> None:
    metric = metric_of(0.5, name=text)
    hostile = record(
        metric=metric,
        name=text,
        command=text,
        flags=[text],
        title=text,
        protocol=text,
        dtype=text,
        split=text,
        members=[text],
        other_metrics=[metric],
        training=TRAINING.model_copy(update={"recipe": text, "selection": text}),
        seeds=SEEDS.model_copy(update={"split": text, "metric": text}),
    )
    _, page = pages_of(tmp_path, [hostile])
    other = [metric_of(0.5, name="other")]
    plain_record = record(protocol="x", flags=["x"], members=["x"], training=TRAINING, seeds=SEEDS, other_metrics=other)
    _, plain = pages_of(tmp_path / "plain", [plain_record])
    assert Page(page).tags == Page(plain).tags
    assert [name for name, _ in Page(page).attributes] == [name for name, _ in Page(plain).attributes]
    ((_, said),) = [cell for cell in Page(page).rows[0] if cell[0] == "Benchmark"]
    assert said.replace("\r\n", "\n") == text.replace("\r\n", "\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_in_its_cell_of_the_markdown_table(text: str, tmp_path: Path) -> None:
    hostile = record(
        name=text,
        flags=[text],
        dtype=text,
        members=[text],
        other_metrics=[metric_of(0.5, name=text)],
        training=TRAINING.model_copy(update={"recipe": text, "selection": text}),
        seeds=SEEDS.model_copy(update={"split": text}),
    )
    page, _ = pages_of(tmp_path, [hostile])
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    (notes,) = [line for line in page.splitlines() if line.startswith("- ")]
    assert not re.search(r"<|(?<!\\)[\[\]`*_]", notes)
    assert len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<" not in rows[2]
    assert not re.search(r"(?<!\\)[\[\]`*_]", rows[2])


@pytest.mark.parametrize("field", ["title", "protocol", "metric", "split"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_heading_stays_one_line_of_the_markdown_page(text: str, field: str, tmp_path: Path) -> None:
    value = metric_of(0.5, name=text) if field == "metric" else text
    hostile, _ = pages_of(tmp_path, [record(**{field: value})])
    plain, _ = pages_of(tmp_path / "plain", [record()])
    assert len(hostile.splitlines()) == len(plain.splitlines())
    if field != "protocol":  # which stands between backticks
        assert "<script" not in hostile
        assert "<img" not in hostile


def test_the_pages_show_value_interval_and_rank(tmp_path: Path) -> None:
    markdown, page = pages_of(
        tmp_path, [record(0.4518), record(0.9, name="part", digest="sha256:p", flags=["partial"])]
    )
    rows = [[text for _, text in row] for row in Page(page).rows]
    assert rows[0][4:10] == ["45.18 %", "44.18 % - 46.18 %", "gpt-345miteration 500000", "354.9M", "1", "measured"]
    assert rows[1][4:10] == ["90.00 %", "89.00 % - 91.00 %", "partiteration 500000partial", "354.9M", "-", "measured"]
    first, second = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    assert first.startswith("| 1 | measured | gpt-345m | 500000 | 354.9M | 45.18 % | 44.18 % - 46.18 % |")
    assert second.startswith("| - | measured | part |")


def test_publishing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    append(tmp_path / "results.jsonl", [record(digest=f"sha256:{n}", name=f"model {n}") for n in range(5)])
    for folder in ("a", "b"):
        publish([tmp_path / "results.jsonl"], tmp_path / folder)
    again = publish([tmp_path / "results.jsonl"], tmp_path / "a")
    assert [path.name for path in again] == ["README.md", "index.html"]
    for path in again:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_order_of_lines_does_not_change_the_pages(tmp_path: Path) -> None:
    records = [record(0.1 * n, digest=f"sha256:{n}", name=f"model {n}") for n in range(1, 6)]
    assert pages_of(tmp_path / "a", records) == pages_of(tmp_path / "b", records[::-1])


def test_an_empty_store_makes_pages_that_say_so(tmp_path: Path) -> None:
    _, page = pages_of(tmp_path, [])
    assert "No records yet." in page
    assert not {"td", "script"} & set(Page(page).tags)


def test_the_published_pages_of_the_project_are_those_of_its_records() -> None:
    assert len(check(default_stores(), default_store().parent)) == 2


def test_a_page_that_is_missing_or_of_other_records_is_found_stale(tmp_path: Path) -> None:
    store, pages = tmp_path / "results.jsonl", tmp_path / "pages"
    append(store, [record(0.45)])
    with pytest.raises(DataError, match=r"there is no `.*README.md`"):
        check([store], pages)
    markdown, page = publish([store], pages)
    assert check([store], pages) == [markdown, page]
    page.write_text(page.read_text().replace("45.00", "54.00"))
    with pytest.raises(DataError, match=r"index.html` is not made of the records"):
        check([store], pages)
    publish([store], pages)
    append(store, [record(0.46, digest="sha256:other")])
    with pytest.raises(DataError, match=r"README.md` is not made of the records as they are now"):
        check([store], pages)


def test_only_the_lines_of_pictures_may_differ(tmp_path: Path) -> None:
    store, pages = tmp_path / "results.jsonl", tmp_path / "pages"
    append(store, [record(0.4 + 0.01 * n, digest=f"sha256:{n}", name=f"model {n}") for n in range(5)])
    _, page = publish([store], pages)
    text = page.read_text()
    assert "<svg" in text
    page.write_text(re.sub(r"<path d=\"[^\"]*\"", '<path d="M 0 0"', text))
    assert page.read_text() != text
    assert len(check([store], pages)) == 2
