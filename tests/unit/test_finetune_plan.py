"""What is settled before finetuning begins: heads drawn on purpose only, kept where they fit; folders guarded."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import (
    SAMPLES,
    STILL,
    bert_config,
    finetune_rank,
    gpt_config,
    lines_of,
    make_mnli,
    make_pretrained,
    make_squad,
    options_for,
    untimed,
    weights_of,
)
from making import run_here

from mpeval.checkpoint.open import open_checkpoint
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError, ConfigError, DataError, MpevalError, OutputError, TokenizerError, UsageError
from mpeval.finetune import Options, plan
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group

HEAD = ("multichoice_head.weight", "multichoice_head.bias")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained checkpoints, two finetuned runs, and data beside them."""
    folder = tmp_path_factory.mktemp("plans")
    make_pretrained(folder / "bert", bert_config(init_std=0.2))
    make_pretrained(folder / "gpt", gpt_config())
    make_mnli(folder)
    make_squad(folder)
    finetune_rank(Group.single(), options_for(folder / "bert", folder / "race", "epochs=1", "lr=1e-2"))
    finetune_rank(Group.single(), of(folder, "bert", folder / "mnli", "steps=1", task="mnli"))
    return folder


def of(root: Path, name: str, output: Path, *settings: str, task: str = "race", **more: Any) -> Options:
    data = SAMPLES if task.split("/")[0] in {"race", "piqa"} else root
    return options_for(root / name, output, *settings, task=task, data=data, allow_modified_data=True, **more)


# ---- heads ----


@pytest.mark.parametrize(
    ("name", "task", "head", "drawn"),
    [
        ("bert", "race", "multichoice", HEAD),
        ("bert", "piqa", "multichoice", HEAD),
        ("bert", "mnli", "classification", ("classification_head.weight", "classification_head.bias")),
        ("bert", "squad", "span", ("span_head.weight", "span_head.bias")),
        ("gpt", "race", "multichoice", (*HEAD, "pooler.dense.weight", "pooler.dense.bias")),
        ("gpt", "race/all", None, ()),
        ("gpt", "piqa", None, ()),
        ("race", "race", "multichoice", ()),
        ("race", "piqa", "multichoice", ()),
    ],
)
def test_a_head_is_drawn_where_there_is_none(
    name: str, task: str, head: str | None, drawn: tuple[str, ...], root: Path, tmp_path: Path
) -> None:
    made = plan(of(root, name, tmp_path / "run", task=task), 1, 1)
    assert made.config.task_head == head
    assert set(made.drawn) == set(drawn)
    known = open_checkpoint(root / name).config.shapes()
    assert all(name in known or name in made.drawn for name in made.config.shapes())
    if head:
        assert (made.config.lm_head, made.config.binary_head) == (False, False)


def test_a_head_of_another_task_is_replaced_on_purpose_only(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has a classification head, `race/megatron` needs a multichoice") as caught:
        plan(of(root, "mnli", tmp_path / "run"), 1, 1)
    assert "--init-head" in caught.value.hint
    made = plan(of(root, "mnli", tmp_path / "run", init_head=True), 1, 1)
    assert made.drawn == HEAD
    assert (made.config.classes, made.config.multichoice_head) == (0, True)


def test_a_head_of_the_same_task_is_drawn_anew_on_purpose_only(root: Path, tmp_path: Path) -> None:
    assert plan(of(root, "race", tmp_path / "run"), 1, 1).drawn == ()
    assert plan(of(root, "race", tmp_path / "run", init_head=True), 1, 1).drawn == HEAD


def test_a_classification_head_of_other_classes_is_another_head(root: Path, tmp_path: Path) -> None:
    (root / "QQP").mkdir(exist_ok=True)
    rows = "".join(f"{n}\t1\t2\tWho lit the oven {n}?\tWho lit it?\t{n % 2}\n" for n in range(8))
    for split in ("train", "dev"):
        (root / f"QQP/{split}.tsv").write_text(f"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n{rows}")
    with pytest.raises(UsageError, match="has a classification head"):
        plan(of(root, "mnli", tmp_path / "run", task="qqp"), 1, 1)
    assert plan(of(root, "mnli", tmp_path / "run", task="qqp", init_head=True), 1, 1).config.classes == 2


def test_the_language_models_head_is_never_drawn(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--init-head` draws no head"):
        plan(of(root, "gpt", tmp_path / "run", task="race/all", init_head=True), 1, 1)


@pytest.mark.parametrize(
    ("task", "unit", "others"), [("race/gpt3", "token", ("all", "lm-eval")), ("piqa/byte-norm", "byte", ("lm-eval",))]
)
def test_nothing_is_finetuned_to_be_compared_by_length(
    task: str, unit: str, others: tuple[str, ...], root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"`{task}` compares log-probabilities per {unit}") as caught:
        plan(of(root, "gpt", tmp_path / "run", task=task), 1, 1)
    for name in others:
        assert f"`{task.split('/')[0]}/{name}`" in caught.value.hint
        plan(of(root, "gpt", tmp_path / name, task=f"{task.split('/')[0]}/{name}"), 1, 1)


def test_drawn_heads_come_from_the_seed_and_all_else_from_the_checkpoint(root: Path, tmp_path: Path) -> None:
    for seed in (1234, 5):
        options = of(root, "bert", tmp_path / str(seed), "steps=1", "lr=1e-20", f"seed={seed}")
        finetune_rank(Group.single(), options)
        found, before = weights_of(tmp_path / str(seed)), weights_of(root / "bert")
        config: ModelConfig = open_checkpoint(tmp_path / str(seed)).config
        assert found["multichoice_head.weight"].std() == pytest.approx(config.init_std, rel=0.4)
        for name, value in found.items():
            theirs = draw_full(config, name, seed) if name in HEAD else before[name]
            torch.testing.assert_close(value, theirs, rtol=0, atol=1e-12)


def test_what_continues_from_a_head_begins_with_its_loss(root: Path, tmp_path: Path) -> None:
    """The kept head answers as it did: a second run's first loss is what the first run's weights give."""
    for name, more in (("kept", {}), ("new", {"init_head": True})):
        settings = ("batch=24", "steps=1", "lr=1e-20", *STILL)
        finetune_rank(Group.single(), of(root, "race", tmp_path / name, *settings, **more))
    [kept], [new] = untimed(tmp_path / "kept"), untimed(tmp_path / "new")
    command = f"evaluate {root / 'race'} --task race --split train --data {SAMPLES} --output {tmp_path / 'e'}"
    assert run_here(f"{command} --device cpu --quiet") == 0
    lines = lines_of(tmp_path / "e/samples.jsonl")
    probabilities = torch.tensor([line["probabilities"][line["target"]] for line in lines])
    assert kept["loss"] == pytest.approx(float(-probabilities.log().mean()), abs=1e-5)
    assert abs(new["loss"] - kept["loss"]) > 1e-3


@pytest.mark.parametrize("types", [0, 1, 2])
def test_a_bert_without_token_types_gets_them(types: int, tmp_path: Path) -> None:
    make_pretrained(tmp_path / "bert", bert_config(tokentypes=types, init_std=0.3))
    made = plan(options_for(tmp_path / "bert", tmp_path / "run"), 1, 1)
    assert made.config.tokentypes == (types or 2)
    table = "embedding.tokentype.weight"
    assert (table in made.drawn) == (types == 0)
    finetune_rank(Group.single(), options_for(tmp_path / "bert", tmp_path / "run", "steps=1", "lr=1e-20", *STILL))
    found = weights_of(tmp_path / "run")[table]
    assert found.shape == (types or 2, 32)
    if types:
        torch.testing.assert_close(found, weights_of(tmp_path / "bert")[table], rtol=0, atol=1e-12)


def test_a_bert_without_a_pooler_gets_one_unless_it_reads_every_token(root: Path, tmp_path: Path) -> None:
    make_pretrained(tmp_path / "bert", bert_config(pooler=False, binary_head=False))
    made = plan(options_for(tmp_path / "bert", tmp_path / "run"), 1, 1)
    assert set(made.drawn) == {*HEAD, "pooler.dense.weight", "pooler.dense.bias"}
    options = options_for(tmp_path / "bert", tmp_path / "run", task="squad", data=root, allow_modified_data=True)
    made = plan(options, 1, 1)
    assert not made.config.pooler
    assert set(made.drawn) == {"span_head.weight", "span_head.bias"}


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("bert", "race", "has no task head, `race/megatron` needs a multichoice head"),
        ("bert", "mnli", "has no task head, `mnli/megatron` needs a classification head of 3 classes"),
        ("mnli", "race", "has a classification head of 3 classes, `race/megatron` needs a multichoice head"),
        ("race", "squad", "has a multichoice head, `squad/v1` needs a span head"),
        ("gpt", "race", "has no task head, `race/last-token` needs a multichoice head"),
        ("race", "wikitext103/masked", "without a masked language model head"),
    ],
)
def test_evaluation_needs_the_head_of_its_task(
    name: str, task: str, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = SAMPLES if task == "race" else root
    options = "--allow-modified-data --device cpu"
    assert run_here(f"evaluate {root / name} --task {task} --data {data} {options}") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert "\n\nhint: " in errors


def test_what_is_new_is_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune_rank(Group.single(), of(root, "bert", tmp_path / "one", "steps=1", quiet=False))
    text = capsys.readouterr()
    assert "race/megatron: 24 questions of the train split, race-small; new, drawn from the seed: multichoice_head" in (
        text.err.replace("\n", " ")
    )
    assert "dev accuracy" in text.out
    finetune_rank(Group.single(), of(root, "race", tmp_path / "two", "steps=1", quiet=False))
    assert "nothing drawn: the head is there" in capsys.readouterr().err.replace("\n", " ")


# ---- the rest ----


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"task": "rcae"}, UsageError, "no task `rcae`"),
        ({"task": "lambada"}, UsageError, "scores a GPT"),
        ({"task": "wikitext103/masked"}, UsageError, "nothing is finetuned on `wikitext103/masked`"),
        ({"task": "race/*"}, UsageError, "means 2 protocols"),
        ({"task": "race/last-token"}, UsageError, "`race/last-token` scores a GPT"),
        ({"seeds": 0}, UsageError, "`--seeds 0` leaves nothing to do"),
        ({"recipe": "rcae-small"}, UsageError, "no finetuning recipe `rcae-small`"),
        ({"settings": ("batch=25", "lr=1e-3")}, ConfigError, "24 training questions do not fill a batch of 25"),
        ({"checkpoint": Path("nowhere")}, CheckpointError, "nowhere"),
        ({"data": Path("nowhere")}, DataError, "no such data folder"),
        ({"tokenizer": Path("nowhere")}, TokenizerError, "no such tokenizer"),
        ({"record": SAMPLES / "piqa/train.jsonl"}, DataError, "it holds no record"),
        ({"output": SAMPLES}, OutputError, "is no training run: it holds"),
        ({"output": SAMPLES, "seeds": 2}, OutputError, "holds something else than runs of several seeds"),
        ({"output": SAMPLES / "piqa/train.jsonl"}, OutputError, "is a file"),
        ({"output": SAMPLES / "piqa/train.jsonl", "seeds": 2}, OutputError, "is a file"),
    ],
)
def test_mistakes_are_found_before_a_weight_is_read(
    change: dict[str, Any], kind: type[MpevalError], message: str, root: Path, tmp_path: Path
) -> None:
    values = vars(options_for(root / "bert", tmp_path / "run")) | change
    with pytest.raises(kind, match=re.escape(message)) as caught:
        plan(Options(**values), 1, 1)
    assert caught.value.hint
    assert not (tmp_path / "run/run.json").exists()


def test_a_runs_folder_is_no_place_for_several_seeds(root: Path) -> None:
    with pytest.raises(OutputError, match="holds something else than runs of several seeds"):
        plan(of(root, "bert", root / "race", seeds=2), 1, 1)


def test_ranks_must_divide_the_model_and_the_batch(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MpevalError, match="does not divide"):
        plan(of(root, "bert", tmp_path / "run"), 3, 1)
    with pytest.raises(ConfigError, match="`batch` must be a multiple of the 3 data-parallel ranks"):
        plan(of(root, "bert", tmp_path / "run"), 1, 3)


def test_a_dev_set_passed_as_train_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "RACE", tmp_path / "RACE")
    shutil.rmtree(tmp_path / "RACE/train")
    shutil.copytree(SAMPLES / "RACE/dev", tmp_path / "RACE/train")
    for allow in (False, True):
        options = options_for(root / "bert", tmp_path / "run", data=tmp_path, allow_modified_data=allow)
        with pytest.raises(DataError, match="holds the dev set of RACE, not train"):
            plan(options, 1, 1)
