"""Finetuning recipes: the paper's are as its table says, files and `--set` are checked, a run's own can be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetuning import bert_config, finetune_rank, make_pretrained, options_for, untimed

from mpeval.errors import ConfigError, UsageError
from mpeval.finetune_recipe import default_recipe, find_finetune_recipe, finetune_recipe_names
from mpeval.parallel.group import Group
from mpeval.recipe import find_recipe, read_recipe
from mpeval.tasks.cards import card_names, load_card

PAPER: dict[str, tuple[int, float, int]] = {
    "mnli-336m": (128, 1e-5, 10),
    "mnli-1.3b": (128, 1e-5, 10),
    "mnli-3.9b": (128, 1e-5, 10),
    "qqp-336m": (128, 5e-5, 12),
    "qqp-1.3b": (128, 3e-5, 12),
    "qqp-3.9b": (256, 4e-5, 12),
    "squad-336m": (64, 3e-5, 2),
    "squad-1.3b": (48, 3e-5, 2),
    "squad-3.9b": (48, 1e-5, 2),
    "squad-v2-336m": (48, 3e-5, 2),
    "squad-v2-1.3b": (64, 3e-5, 2),
    "squad-v2-3.9b": (48, 1e-5, 2),
    "race-336m": (32, 2e-5, 3),
    "race-1.3b": (16, 1e-5, 3),
    "race-3.9b": (32, 2e-5, 3),
}
"""Batch, learning rate and epochs in table 6 of arXiv 1909.08053."""
MINIMAL = "[training]\nepochs = 2\nbatch = 4\nlr = 1e-3\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", finetune_recipe_names())
def test_every_recipe_of_the_package_describes_itself_and_can_be_followed(name: str) -> None:
    recipe = find_finetune_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 20
    config = recipe.config(bert_config())
    assert (config.dropout, config.attention_dropout) == (0.1, 0.1)
    made = recipe.resolved(config, 1000)
    training = made.training
    assert training.steps == recipe.epochs * (1000 // training.batch)
    assert training.warmup_steps == round(0.06 * training.steps)
    assert (training.schedule, training.min_lr, training.clip) == ("linear", 0.0, 1.0)
    assert training.lr_at(training.warmup_steps) == pytest.approx(training.lr, rel=1e-12)
    assert training.lr_at(training.steps) == 0.0


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes_have_its_batch_rate_and_epochs(name: str) -> None:
    recipe = find_finetune_recipe(name)
    assert (recipe.training["batch"], recipe.training["lr"], recipe.epochs) == PAPER[name]
    assert recipe.warmup_share == 0.06
    assert recipe.training["weight_decay"] == 0.1
    assert recipe.training["dtype"] == "float16"


def test_every_task_has_a_recipe_for_every_size_and_no_other_is_there() -> None:
    tasks = [name for name in card_names() if load_card(name).train_split] + ["squad-v2"]
    assert sorted(tasks) == ["mnli", "piqa", "qqp", "race", "squad", "squad-v2"]
    expected = {f"{task}-{size}" for task in tasks for size in ("small", "336m", "1.3b", "3.9b")}
    assert set(finetune_recipe_names()) == expected


@pytest.mark.parametrize(
    ("model", "size"), [("bert-336m", "336m"), ("bert-1.3b", "1.3b"), ("bert-3.9b", "3.9b"), ("bert-tiny", "small")]
)
def test_the_papers_models_get_the_recipe_of_their_size(model: str, size: str) -> None:
    parameters = find_recipe(model).config(30522).parameters()
    assert default_recipe("race", parameters) == f"race-{size}"
    assert default_recipe("squad-v2", parameters) in finetune_recipe_names()


@pytest.mark.parametrize(
    ("settings", "steps", "warmup"),
    [
        ((), 2 * (103 // 4), 0),
        (("warmup_share=0.1",), 50, 5),
        (("epochs=1", "batch=10"), 10, 0),
        (("steps=7", "warmup_share=0.5"), 7, 4),
        (("batch=103",), 2, 0),
    ],
)
def test_steps_follow_from_epochs_and_questions(
    settings: tuple[str, ...], steps: int, warmup: int, tmp_path: Path
) -> None:
    recipe = find_finetune_recipe(str(written(tmp_path, MINIMAL)), settings)
    made = recipe.resolved(bert_config(), 103)
    assert (made.training.steps, made.training.warmup_steps) == (steps, warmup)
    assert made.name == "own"


def test_seeds_are_counted_on_from_the_recipes(tmp_path: Path) -> None:
    recipe = find_finetune_recipe(str(written(tmp_path, MINIMAL)))
    assert [recipe.seeded(offset).training["seed"] for offset in range(3)] == [1234, 1235, 1236]
    recipe = find_finetune_recipe(str(written(tmp_path, MINIMAL)), ("seed=7",))
    made = recipe.seeded(2)
    assert made.training["seed"] == 9
    assert made.resolved(bert_config(), 100).training.seed == 9
    assert (made.epochs, made.training["lr"]) == (2, 1e-3)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (("epochz=2",), "`--set epochz=2` is not NAME=VALUE of a known name", "did you mean `epochs`?"),
        (("warmup_shares=0.1",), "is not NAME=VALUE of a known name", "did you mean `warmup_share`?"),
        (("dropuot=0",), "is not NAME=VALUE of a known name", "did you mean `dropout`?"),
        (("epochs",), "is not NAME=VALUE", "epochs"),
        (("epochs=two",), "`two` is not a value of type int", "`--set epochs=16`"),
        (("epochs=1.5",), "`1.5` is not a value of type int", "--set"),
        (("epochs=-1",), "`epochs` cannot be -1", "--set epochs=..."),
        (("warmup_share=1.5",), "`warmup_share` cannot be 1.5", "--set warmup_share=..."),
        (("micro_tokens=-1",), "`micro_tokens` cannot be -1", "--set micro_tokens=..."),
        (("epochs=0",), "does not say `epochs`", "epochs, batch, lr"),
        (("batch=0",), "`batch` must be at least 1, not 0", "--set batch=..."),
        (("lr=0",), "`lr` must be above 0 and finite", "--set lr=..."),
        (("lr=nan",), "`lr` must be above 0 and finite", "--set lr=..."),
        (("dtype=float64",), "`dtype` must be one of", "--set dtype=..."),
        (("schedule=sine",), "`schedule` must be one of", "--set schedule=..."),
        (("layers=3",), "is not NAME=VALUE of a known name", ""),
        (("warmup_steps=3",), "is not NAME=VALUE of a known name", "did you mean `warmup_share`?"),
        (("mask_share=0.1",), "is not NAME=VALUE of a known name", ""),
        (("micro_batch=1",), "is not NAME=VALUE of a known name", ""),
        (("seed=-1",), "`seed` must be at least 0", "--set seed=..."),
    ],
)
def test_wrong_settings_are_errors_that_suggest_the_right_one(
    settings: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find_finetune_recipe("race-small", settings)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not say `batch`, `lr`, `epochs`"),
        ("[training]\nbatch = 4\nlr = 1e-3\n", "does not say `epochs`"),
        ("[training]\nbatch = 4\nlr = 1e-3\nepochs = 0\nsteps = 0\n", "does not say `epochs`"),
        (MINIMAL + "batchs = 4\n", "unknown `training.batchs`"),
        (MINIMAL + "[model]\ndropouts = 0.1\n", "unknown `model.dropouts`"),
        (MINIMAL + "[optimizer]\nlr = 1\n", "unknown key `optimizer`"),
        (MINIMAL + "schedule = 3\n", "`schedule` is 3, not a value of type str"),
        (MINIMAL + "recompute = 1\n", "`recompute` is 1, not a value of type bool"),
        (MINIMAL + "warmup_share = 2\n", "`warmup_share` cannot be 2"),
        (MINIMAL + "sequence = 128\n", "`sequence` says nothing about finetuning"),
        (MINIMAL + "evaluate_every = 5\n", "`evaluate_every` says nothing about finetuning"),
        (MINIMAL + "warmup_steps = 5\n", "`warmup_steps` says nothing about finetuning"),
        (MINIMAL + "warmup_share = 0.1\nsteps = 9\nwarmup_steps = 5\n", "`warmup_steps` says nothing"),
        (MINIMAL + "decay_steps = 5\n", "`decay_steps` says nothing about finetuning"),
        (MINIMAL + "mask_share = 0.3\n", "`mask_share` says nothing about finetuning"),
        ("training = 3\n", "`training` is 3, not a table"),
        ("[training\n", "is no TOML"),
    ],
)
def test_wrong_files_are_errors_that_name_them(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        find_finetune_recipe(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_name_that_is_none_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finetuning recipe `race-smal`") as caught:
        find_finetune_recipe("race-smal")
    assert "`race-small`" in caught.value.hint
    with pytest.raises(UsageError, match="does not exist"):
        find_finetune_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers", 3), ("hidden", 64), ("heads", 8), ("context", 512), ("family", '"gpt"'), ("post_norm", "true")],
)
def test_a_recipe_for_another_model_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    recipe = find_finetune_recipe(str(written(tmp_path, f"{MINIMAL}[model]\n{name} = {value}\n")))
    with pytest.raises(ConfigError, match=rf"is for a model with {name} .*, the checkpoint's is") as caught:
        recipe.config(bert_config())
    assert "--recipe" in caught.value.hint


def test_a_recipe_may_say_what_its_model_is(tmp_path: Path) -> None:
    text = f'{MINIMAL}[model]\nlayers = 2\nhidden = 32\nfamily = "bert"\ndropout = 0.3\n'
    config = find_finetune_recipe(str(written(tmp_path, text))).config(bert_config())
    assert (config.dropout, config.attention_dropout) == (0.3, bert_config().attention_dropout)


def test_a_runs_own_recipe_repeats_it(tmp_path: Path) -> None:
    """What a run wrote as `recipe.toml`, all defaults spelled out, makes the same run again."""
    bert = make_pretrained(tmp_path / "bert", bert_config(init_std=0.2))
    options = options_for(
        bert, tmp_path / "run", "steps=3", "warmup_share=0.7", "seed=5", "weight_decay=0.2", "dropout=0.2"
    )
    finetune_rank(Group.single(), options)
    own = tmp_path / "run/recipe.toml"
    repeated = options_for(bert, tmp_path / "again", recipe=str(own), settings=("micro_tokens=1024",))
    finetune_rank(Group.single(), repeated)
    lines = untimed(tmp_path / "run")
    assert [line["lr"] for line in lines] == pytest.approx([5e-4, 1e-3, 0.0], abs=1e-9)
    assert untimed(tmp_path / "again") == lines
    assert read_recipe(own).training == read_recipe(tmp_path / "again/recipe.toml").training


def test_too_few_questions_make_no_step(tmp_path: Path) -> None:
    recipe = find_finetune_recipe(str(written(tmp_path, MINIMAL)))
    assert recipe.resolved(bert_config(), 4).training.steps == 2
    with pytest.raises(ConfigError, match="3 training questions do not fill a batch of 4") as caught:
        recipe.resolved(bert_config(), 3)
    assert "--set batch=N" in caught.value.hint
