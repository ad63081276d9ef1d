"""Training on real ranks: the same losses in every layout, the same bits after a kill, readable checkpoints."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankError, run_ranks
from training import losses, make_bert_corpus, make_gpt_corpus, metrics, options_for, train

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.training import read_training_state
from mpeval.errors import MpevalError
from mpeval.parallel.group import Group
from mpeval.pretrain import plan, pretrain, weighted

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return make_gpt_corpus(tmp_path_factory.mktemp("gpt"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return make_bert_corpus(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def straight(gpt: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of 20 steps that nothing interrupted, by layout."""
    made = {}
    for tp, dp in LAYOUTS:
        output = tmp_path_factory.mktemp("straight") / f"{tp}x{dp}"
        train(options_for(gpt, output, "steps=20", "save_every=10", "evaluate_every=10"), tp=tp, dp=dp)
        made[f"{tp}x{dp}"] = output
    return made


def shards(root: Path, step: int) -> list[dict[str, Any]]:
    files = sorted((root / f"iter_{step:07d}").glob("mp_rank_*/model_optim_rng.pt"))
    return [torch.load(path, weights_only=False) for path in files]


def assert_same_state(left: Path, right: Path, step: int) -> None:
    """Weights, moments, random streams and position are equal to the bit."""
    ours, theirs = shards(left, step), shards(right, step)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one["args"].consumed_train_samples == other["args"].consumed_train_samples
        for kind in ("exp_avg", "exp_avg_sq"):
            for name, value in one["optimizer"][kind].items():
                assert value.equal(other["optimizer"][kind][name]), (kind, name)
        for name, value in one["model"].items():
            assert value.equal(other["model"][name]), name
        for mine, its in zip(one["rng_state"], other["rng_state"], strict=True):
            assert all(mine[name].equal(its[name]) for name in mine)


def test_every_layout_gives_the_same_losses(straight: dict[str, Path]) -> None:
    expected = losses(metrics(straight["1x1"]))
    assert expected[-1] < expected[0] - 0.2
    for output in straight.values():
        assert losses(metrics(output)) == pytest.approx(expected, abs=1e-4)
        valid = [line["valid_loss"] for line in metrics(output) if "valid_loss" in line]
        assert valid == pytest.approx([metrics(straight["1x1"])[step]["valid_loss"] for step in (9, 19)], abs=1e-4)


@pytest.mark.parametrize(("tp", "dp"), LAYOUTS)
def test_the_weights_are_those_of_one_rank(tp: int, dp: int, straight: dict[str, Path]) -> None:
    dense = load_model(open_checkpoint(straight["1x1"]))
    model = load_model(open_checkpoint(straight[f"{tp}x{dp}"]))
    for (name, value), other in zip(dense.named_parameters(), model.parameters(), strict=True):
        if name.endswith("word.weight"):
            value, other = value[: dense.config.vocab], other[: dense.config.vocab]
        torch.testing.assert_close(other, value, rtol=1e-3, atol=2e-4)


def cut_back(output: Path, step: int) -> None:
    """Make a run look as if it had been killed after it saved `step`: later metrics are there, a later save is not."""
    for folder in output.glob("iter_*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    (output / "latest_checkpointed_iteration.txt").write_text(str(step))


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("dropout", ["0.0", "0.1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_straight_one_to_the_bit(
    tp: int, dp: int, dropout: str, dtype: str, gpt: tuple[str, Path], tmp_path: Path
) -> None:
    settings = ("steps=20", "save_every=10", f"dropout={dropout}", f"attention_dropout={dropout}", f"dtype={dtype}")
    whole = options_for(gpt, tmp_path / "whole", *settings)
    killed = options_for(gpt, tmp_path / "killed", *settings)
    expected = losses(train(whole, tp=tp, dp=dp))
    train(killed, tp=tp, dp=dp)
    cut_back(tmp_path / "killed", 10)
    assert losses(train(killed, tp=tp, dp=dp)) == expected
    assert_same_state(tmp_path / "whole", tmp_path / "killed", 20)


@pytest.mark.parametrize("saved", [(1, 1), (2, 2)])
@pytest.mark.parametrize("resumed", [(1, 1), (4, 1), (1, 4), (2, 1)])
def test_a_run_goes_on_in_any_other_layout(
    saved: tuple[int, int], resumed: tuple[int, int], straight: dict[str, Path], gpt: tuple[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(straight[f"{saved[0]}x{saved[1]}"], output)
    cut_back(output, 10)
    options = options_for(gpt, output, "steps=20", "save_every=10", "evaluate_every=10")
    lines = train(options, tp=resumed[0], dp=resumed[1])
    assert losses(lines) == pytest.approx(losses(metrics(straight["1x1"])), abs=1e-4)
    assert open_checkpoint(output).grid == (resumed[0], 1)


@pytest.mark.parametrize(
    "change",
    [
        ("micro_batch=1",),
        ("recompute=true",),
        ("micro_batch=2", "recompute=true", "bucket_megabytes=0.001"),
        ("shard_optimizer=true",),
    ],
    ids=" ".join,
)
def test_what_saves_memory_changes_no_loss(
    change: tuple[str, ...], straight: dict[str, Path], gpt: tuple[str, Path], tmp_path: Path
) -> None:
    options = options_for(gpt, tmp_path / "run", "steps=20", *change)
    found = losses(train(options, tp=1, dp=2))
    assert found == pytest.approx(losses(metrics(straight["1x2"])), abs=1e-4)


def test_shared_out_state_resumes_and_can_be_whole_again(
    straight: dict[str, Path], gpt: tuple[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train(options_for(gpt, output, "steps=20", "save_every=10", "shard_optimizer=true"), dp=2)
    assert_same_state(output, straight["1x2"], 10)
    cut_back(output, 10)
    assert losses(train(options_for(gpt, output, "steps=20", "save_every=10", "shard_optimizer=true"), dp=2))
    assert_same_state(output, straight["1x2"], 20)
    cut_back(output, 10)
    train(options_for(gpt, output, "steps=20", "save_every=10"), dp=2)
    assert_same_state(output, straight["1x2"], 20)


def test_bert_learns_and_resumes_in_every_layout(bert: tuple[str, Path], tmp_path: Path) -> None:
    settings = ("steps=20", "save_every=10", "evaluate_every=20", "lr=3e-3")
    expected: list[float] = []
    for tp, dp in LAYOUTS:
        output = tmp_path / f"{tp}x{dp}"
        options = options_for(bert, output, *settings, recipe="bert-tiny")
        lines = train(options, tp=tp, dp=dp)
        expected = expected or losses(lines)
        assert losses(lines) == pytest.approx(expected, abs=2e-4)
        for line in lines:
            assert line["loss"] == pytest.approx(line["lm_loss"] + line["order_loss"], abs=1e-6)
        cut_back(output, 10)
        assert losses(train(options, tp=tp, dp=dp)) == losses(lines)
    assert expected[-1] < expected[0] - 0.05


@pytest.mark.parametrize("change", [("post_norm=true",), ("binary_head=false", "pooler=false")], ids=" ".join)
def test_other_berts_are_trained_and_read(change: tuple[str, ...], bert: tuple[str, Path], tmp_path: Path) -> None:
    options = options_for(bert, tmp_path / "run", "steps=4", "save_every=2", *change, recipe="bert-tiny")
    lines = train(options, tp=2)
    cut_back(tmp_path / "run", 2)
    assert losses(train(options, tp=2)) == losses(lines)
    config = load_model(open_checkpoint(tmp_path / "run")).config
    assert config.post_norm == ("post_norm=true" in change)
    assert config.binary_head == ("post_norm=true" in change)


MODERN = ("rope=true", "norm=rmsnorm", "swiglu=true", "kv_heads=2", "linear_bias=false", "qkv_bias=false", "tied=false")


def test_a_gpt_of_today_is_trained_and_resumed_at_another_tp(gpt: tuple[str, Path], tmp_path: Path) -> None:
    options = options_for(gpt, tmp_path / "run", "steps=8", "save_every=4", *MODERN, "qk_norm=true")
    lines = losses(train(options, tp=2))
    cut_back(tmp_path / "run", 4)
    assert losses(train(options, tp=1)) == pytest.approx(lines, abs=1e-4)


def test_float16_skips_overflows_counts_them_and_goes_on(gpt: tuple[str, Path], tmp_path: Path) -> None:
    settings = ("steps=20", "save_every=10", "dtype=float16", "loss_scale=1e7", "loss_scale_window=4")
    options = options_for(gpt, tmp_path / "run", *settings)
    lines = train(options, tp=2)
    skipped = [line["skipped"] for line in lines]
    assert skipped[0] == 1
    assert 0 < sum(skipped) < 16
    scales = [line["loss_scale"] for line in lines]
    for number in range(1, len(lines)):
        if skipped[number - 1]:
            assert scales[number] == scales[number - 1] / 2
        else:
            assert scales[number] in {scales[number - 1], 2 * scales[number - 1]}
    state = read_training_state(open_checkpoint(tmp_path / "run"))
    assert state.progress.updates == 20 - sum(skipped)
    assert state.progress.samples == 80
    cut_back(tmp_path / "run", 10)
    assert [line["loss"] for line in train(options, tp=2)] == [line["loss"] for line in lines]


def test_a_checkpoint_before_the_first_update_holds_zero_moments(gpt: tuple[str, Path], tmp_path: Path) -> None:
    settings = ("steps=6", "save_every=2", "dtype=float16", "loss_scale=1e12")
    lines = train(options_for(gpt, tmp_path / "run", *settings))
    assert all(line["skipped"] for line in lines)
    cut_back(tmp_path / "run", 2)
    moments = shards(tmp_path / "run", 2)[0]["optimizer"]["exp_avg"]
    assert not any(value.any() for value in moments.values())
    assert train(options_for(gpt, tmp_path / "run", *settings))[-1]["loss_scale"] == lines[-1]["loss_scale"]


def test_a_loss_that_is_no_number_stops_with_step_rank_and_documents(gpt: tuple[str, Path], tmp_path: Path) -> None:
    options = options_for(gpt, tmp_path / "run", "steps=20", "save_every=1", "lr=1e30", "clip=0", "warmup_steps=0")
    with pytest.raises(RankError) as caught:
        train(options, dp=2)
    text = str(caught.value)
    assert "TrainingError: step 2: the loss is nan" in text or "TrainingError: step 2: the gradient norm is" in text
    assert "rank 0, whose batch is of documents" in text
    assert f"`{gpt[0]}:" in text
    assert len(metrics(tmp_path / "run")) == 1
    assert open_checkpoint(tmp_path / "run").iteration == 1


def _stopped(group: Group, options: Any, after: int) -> int:
    """Train, and ask rank 1 alone to stop in the middle of step `after`."""
    from mpeval.train import loop

    seen = 0
    real = loop.step

    def counted(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == after and group.world.rank == group.world.ranks - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    loop.step = counted
    pretrain(plan(options, group.tp.ranks, group.dp.ranks), options, group)
    return seen


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (1, 2)])
def test_a_signal_to_any_rank_ends_all_after_the_step_saved(
    tp: int, dp: int, straight: dict[str, Path], gpt: tuple[str, Path], tmp_path: Path
) -> None:
    options = options_for(gpt, tmp_path / "run", "steps=20")
    assert run_ranks(_stopped, tp * dp, options, 7, tp=tp) == [7] * (tp * dp)
    assert open_checkpoint(tmp_path / "run").iteration == 7
    assert losses(train(options, tp=tp, dp=dp)) == losses(metrics(straight[f"{tp}x{dp}"]))
    assert_same_state(tmp_path / "run", straight[f"{tp}x{dp}"], 20)


def test_only_the_newest_checkpoints_are_kept(gpt: tuple[str, Path], tmp_path: Path) -> None:
    train(options_for(gpt, tmp_path / "run", "steps=7", "save_every=2", keep=2))
    assert sorted(item.name for item in (tmp_path / "run").glob("*iter_*")) == ["iter_0000006", "iter_0000007"]
    assert open_checkpoint(tmp_path / "run").iteration == 7


def test_a_finished_run_is_left_as_it_is(gpt: tuple[str, Path], tmp_path: Path) -> None:
    options = options_for(gpt, tmp_path / "run", "steps=3")
    lines = train(options)
    before = (tmp_path / "run/iter_0000003/mp_rank_00/model_optim_rng.pt").stat().st_mtime_ns
    assert train(options) == lines
    assert (tmp_path / "run/iter_0000003/mp_rank_00/model_optim_rng.pt").stat().st_mtime_ns == before
    longer = options_for(gpt, tmp_path / "run", "steps=5", "decay_steps=3")
    assert losses(train(longer))[:3] == losses(lines)


def test_ten_steps_and_ten_more_are_twenty(straight: dict[str, Path], gpt: tuple[str, Path], tmp_path: Path) -> None:
    train(options_for(gpt, tmp_path / "run", "steps=10", "decay_steps=20"))
    options = options_for(gpt, tmp_path / "run", "steps=20", "decay_steps=20")
    assert losses(train(options)) == losses(metrics(straight["1x1"]))
    assert_same_state(tmp_path / "run", straight["1x1"], 20)


def test_a_blend_trains_and_every_corpus_has_its_share(gpt: tuple[str, Path], tmp_path: Path) -> None:
    other, _ = make_gpt_corpus(tmp_path / "other", seed=2)
    options = options_for(gpt, tmp_path / "run", "steps=3", data=("0.25", gpt[0], "0.75", other))
    assert len(losses(train(options, dp=2))) == 3
    assert [weight for weight, _ in weighted(("0.25", gpt[0], "0.75", other))] == [0.25, 0.75]
    sizes = [weight for weight, _ in weighted((gpt[0], other))]
    assert all(size > 1000 for size in sizes)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (("lr=2e-3",), {}, "belongs to another run: its lr is `0.001`, this run's `0.002`"),
        (("steps=9",), {}, "its decay steps is `2`, this run's `9`"),
        (("seed=5",), {}, "its seed is `1234`, this run's `5`"),
        (("layers=1",), {}, "holds another model than this run's"),
        ((), {"data": "other"}, "its data is"),
    ],
)
def test_another_run_may_not_go_on_in_the_same_folder(
    settings: tuple[str, ...], more: dict[str, Any], message: str, gpt: tuple[str, Path], tmp_path: Path
) -> None:
    train(options_for(gpt, tmp_path / "run", "steps=2"))
    if more:
        more = {"data": (make_gpt_corpus(tmp_path / "other", documents=40)[0],)}
    options = options_for(gpt, tmp_path / "run", "steps=2", *settings, **more)
    with pytest.raises(MpevalError, match=message.replace("(", r"\(")):
        pretrain(plan(options, 1, 1), options, Group.single())
    assert len(metrics(tmp_path / "run")) == 2


def test_ids_beyond_the_vocabulary_are_refused_with_their_document(gpt: tuple[str, Path], tmp_path: Path) -> None:
    from making import tokenizer_json

    (tmp_path / "tokenizer.json").write_text(tokenizer_json(300), encoding="utf-8")
    options = options_for(gpt, tmp_path / "run", "steps=2", tokenizer=tmp_path)
    with pytest.raises(MpevalError, match=r"holds token \d+, the tokenizer has 300 \(documents `.*:\d+`"):
        pretrain(plan(options, 1, 1), options, Group.single())
