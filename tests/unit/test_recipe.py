"""Recipes: those of the paper have its sizes and settings, files and `--set` are checked, schedules are torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpeval.errors import ConfigError, MpevalError, UsageError
from mpeval.recipe import Training, changed, find_recipe, read_recipe, recipe_names

PAPER: dict[str, tuple[float, int, int, int]] = {
    "gpt-355m": (355e6, 24, 1024, 16),
    "gpt-1.2b": (1.2e9, 40, 1536, 16),
    "gpt-2.5b": (2.5e9, 54, 1920, 20),
    "gpt-4.2b": (4.2e9, 64, 2304, 24),
    "gpt-8.3b": (8.3e9, 72, 3072, 24),
    "bert-336m": (336e6, 24, 1024, 16),
    "bert-1.3b": (1.3e9, 24, 2048, 32),
    "bert-3.9b": (3.9e9, 48, 2560, 40),
    "bert-336m-postnorm": (336e6, 24, 1024, 16),
    "bert-1.3b-postnorm": (1.3e9, 24, 2048, 32),
}
"""Parameters, layers, hidden size and heads in tables 1, 2 and 4 of arXiv 1909.08053."""
BERTS = [name for name in PAPER if name.startswith("bert")]
MINIMAL = "[model]\nlayers = 2\nhidden = 8\nheads = 2\ncontext = 16\n[training]\nsteps = 10\nbatch = 4\nlr = 1e-3\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_describes_itself_and_makes_a_model(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name
    assert len(recipe.description) > 20
    assert recipe.family in name.split("-")
    assert recipe.config(vocab=30522).padded_vocab >= 30592


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_its_sizes(name: str) -> None:
    parameters, layers, hidden, heads = PAPER[name]
    config = find_recipe(name).config(30522 if name in BERTS else 50257)
    assert config.parameters() == pytest.approx(parameters, rel=0.015)
    assert (config.layers, config.hidden, config.heads) == (layers, hidden, heads)
    assert config.ffn == 4 * hidden
    assert (config.dropout, config.attention_dropout, config.init_std, config.gelu) == (0.1, 0.1, 0.02, "tanh")
    assert (config.tokentypes, config.lm_head, config.binary_head) == (
        (2, True, True) if name in BERTS else (0, False, False)
    )


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_are_trained_as_it_says(name: str) -> None:
    training = find_recipe(name).training
    steps = {"bert-3.9b": 1_500_000}.get(name, 2_000_000 if name in BERTS else 300_000)
    assert training.steps == steps
    assert (training.weight_decay, training.clip, training.dtype, training.recompute) == (0.01, 1.0, "float16", True)
    if name in BERTS:
        assert (training.batch, find_recipe(name).sequence, training.lr) == (1024, 512, 1e-4)
        assert (training.schedule, training.warmup_steps, training.decay_steps) == ("linear", 10_000, 2_000_000)
    else:
        assert (training.batch, find_recipe(name).sequence, training.lr) == (512, 1024, 1.5e-4)
        assert (training.schedule, training.warmup_steps, training.decay_steps) == ("cosine", 3_000, 300_000)
        assert training.lr_at(300_000) == training.min_lr == 1e-5


def test_the_learning_rate_of_gpt_passes_the_papers_points() -> None:
    training = find_recipe("gpt-8.3b").training
    assert training.lr_at(1_500) == pytest.approx(0.75e-4)
    assert training.lr_at(3_000) == pytest.approx(1.5e-4)
    assert training.lr_at(3_000 + 297_000 // 2) == pytest.approx((1.5e-4 + 1e-5) / 2)
    assert training.lr_at(400_000) == pytest.approx(1e-5)


def test_the_learning_rate_of_bert_passes_the_papers_points() -> None:
    training = find_recipe("bert-3.9b").training
    assert training.lr_at(10_000) == pytest.approx(1e-4)
    assert training.lr_at(10_000 + 1_990_000 // 2) == pytest.approx(0.5e-4)
    assert training.lr_at(training.steps) == pytest.approx(1e-4 * 500_000 / 1_990_000)
    assert find_recipe("bert-1.3b").training.lr_at(2_000_000) == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_equal_torchs(schedule: str) -> None:
    training = Training(steps=50, batch=1, lr=0.3, min_lr=0.03, warmup_steps=10, decay_steps=40, schedule=schedule)
    from torch.optim import lr_scheduler as of_torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    rise = of_torch.LinearLR(optimizer, start_factor=1 / 10, end_factor=1.0, total_iters=9)
    fall = {
        "cosine": lambda: of_torch.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.03),
        "linear": lambda: of_torch.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=30),
        "constant": lambda: of_torch.ConstantLR(optimizer, factor=1.0),
    }[schedule]()
    scheduler = of_torch.SequentialLR(optimizer, [rise, fall], milestones=[9])
    for step in range(1, 41):
        assert training.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("size", ["336m", "1.3b"])
def test_both_orders_of_layer_norm_differ_in_nothing_else(size: str) -> None:
    paper, original = find_recipe(f"bert-{size}"), find_recipe(f"bert-{size}-postnorm")
    assert original.values() == {**paper.values(), "post_norm": True}
    assert not paper.config(30522).post_norm
    assert original.config(30522).post_norm


def test_the_scaling_studys_heads_and_table_can_be_had() -> None:
    config = find_recipe("gpt-8.3b", ["heads=32"]).config(50257, tp=8)
    assert (config.heads, config.head_dim, config.padded_vocab) == (32, 96, 51200)


def test_a_recipe_survives_being_written(tmp_path: Path) -> None:
    for name in recipe_names():
        recipe = find_recipe(name, ["seed=7", "split=90,5,5", "lr=1.5e-2"])
        assert read_recipe(written(tmp_path, recipe.toml())) == recipe


def test_set_changes_model_and_training() -> None:
    recipe = find_recipe(
        "gpt-355m", ["dtype=bfloat16", "model.hidden=512", "steps=1_000", "recompute=False", "clip=0.5"]
    )
    assert (recipe.training.dtype, recipe.training.steps, recipe.training.recompute) == ("bfloat16", 1000, False)
    assert (recipe.model["hidden"], recipe.model["ffn"], recipe.training.clip) == (512, 2048, 0.5)


@pytest.mark.parametrize("name", ["gpt-tiny", "bert-tiny"])
def test_a_gelu_gives_way_to_swiglu_and_comes_back(name: str) -> None:
    recipe = find_recipe(name, ["swiglu=true"])
    assert recipe.config(100).gelu is None
    assert changed(recipe, ["swiglu=false"]).config(100).gelu == "tanh"
    with pytest.raises(ConfigError, match="unknown `gelu`: `erf`"):
        find_recipe(name, ["swiglu=true", "gelu=erf"])


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("step=5", "`--set step=5` is not NAME=VALUE of a known name", "did you mean `steps`?"),
        ("steps", "`--set steps` is not NAME=VALUE of a known name", "did you mean `steps`?"),
        ("vocab=5", "`--set vocab=5` is not NAME=VALUE of a known name", "did you mean `vocab_divisor`?"),
        ("steps=many", "`--set steps=many`: `many` is not a value of type int", "e.g. `--set steps=16`"),
        ("steps=0", "`steps` must be at least 1, not 0", "give another by `--set steps=...`"),
        ("lr=nan", "`lr` must be above 0 and finite, not nan", "give another by `--set lr=...`"),
        ("min_lr=1", "`min_lr` must be at most lr 0.001, not 1.0", "give another by `--set min_lr=...`"),
        ("beta2=1", "`beta2` must be at least 0 and below 1, not 1.0", "give another by `--set beta2=...`"),
        ("recompute=yes", "`--set recompute=yes`: `yes` is not a value of type bool", "e.g. `--set recompute=true`"),
        ("schedule=cos", "`schedule` must be one of cosine, linear, constant, not cos", "give another"),
        ("dtype=fp16", "`dtype` must be one of float32, bfloat16, float16, not fp16", "give another"),
        ("heads=3", "hidden size 128 is not divisible by 3 heads", "give one that divides it by `--set heads=N`"),
        ("sequence=512", "`sequence` must be at most 256, not 512", "give another by `--set sequence=...`"),
        ("decay_steps=20", "`warmup_steps` must be at most decay_steps 20, not 30", "give another"),
    ],
)
def test_impossible_settings_are_refused(setting: str, message: str, hint: str) -> None:
    with pytest.raises(MpevalError) as caught:
        find_recipe("gpt-tiny", [setting])
    assert caught.value.message == message
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("lr =", "learning_rate ="), "has an unknown `training.learning_rate`", "known: "),
        (("heads", "head"), "has an unknown `model.head`", "did you mean `heads`?"),
        (("[training]", "[trainig]"), "has an unknown key `trainig`", "did you mean `training`?"),
        (("layers = 2\n", ""), "does not say `layers`", "a recipe has [model] layers"),
        (("steps = 10\nbatch = 4\n", ""), "does not say `steps`, `batch`", "a recipe has [model] layers"),
        (("heads = 2", 'heads = "2"'), "`heads` is '2', not a value of type int", "e.g. heads = 16"),
        (("heads = 2", "heads = true"), "`heads` is True, not a value of type int", "e.g. heads = 16"),
        (("lr = 1e-3", "lr = 'high'"), "`lr` is 'high', not a value of type float", "e.g. lr = 1e-4"),
        (("heads = 2", "heads = = 2"), "is no TOML", "compare it with"),
        (("[model]", "model = 3\n[other]"), "has an unknown key `other`", "known: "),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: tuple[str, str], message: str, hint: str) -> None:
    path = written(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(ConfigError) as caught:
        find_recipe(str(path))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint.startswith(hint)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`model` is 3, not a table"):
        read_recipe(written(tmp_path, "model = 3\n"))


def test_a_file_needs_no_more_than_sizes_and_steps(tmp_path: Path) -> None:
    recipe = find_recipe(str(written(tmp_path, MINIMAL.replace("1e-3", "1"))))
    assert (recipe.name, recipe.sequence, recipe.training.lr, recipe.model["ffn"]) == ("own", 16, 1.0, 32)


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_recipe("gpt-8.3")
    assert caught.value.hint.startswith("did you mean `gpt-8.3b`?")
    with pytest.raises(UsageError, match=r"no such recipe: `.*nothing\.toml` does not exist"):
        find_recipe(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("settings", "dp", "expected"),
    [([], 2, 8), ([], 64, 8), (["micro_batch=0"], 64, 8), (["micro_batch=0"], 2, 256), (["micro_batch=4"], 128, 4)],
)
def test_a_batch_is_cut_over_ranks_and_passes(settings: list[str], dp: int, expected: int) -> None:
    assert find_recipe("gpt-2.5b", settings).micro_batch(dp) == expected


@pytest.mark.parametrize(("dp", "message"), [(3, "multiple of the 3 data"), (128, "divisor of the 4 sequences")])
def test_a_batch_that_cannot_be_cut_is_refused(dp: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_recipe("gpt-2.5b").micro_batch(dp)
