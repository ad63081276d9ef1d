"""Task cards: what they say, and which protocol a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpeval.errors import DataError, UsageError
from mpeval.folders import data_folder
from mpeval.tasks.cards import card_names, load_card, read_card, select, select_fitting

QUESTIONS = ("mnli", "piqa", "qqp", "race", "squad")
RACE = (data_folder("tasks") / "race.toml").read_text(encoding="utf-8")


def chosen(*names: str, family: str) -> list[str]:
    return [protocol.id for _, protocol in select_fitting(list(names), family, "`run` holds")]


def test_there_is_a_card_for_each_task() -> None:
    assert card_names() == ["lambada", "mnli", "piqa", "qqp", "race", "squad", "wikitext103"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_task_with_a_head_can_be_trained_and_chosen_by_a_split_with_labels(name: str) -> None:
    card = load_card(name)
    for protocol in card.protocols:
        train, dev = (card.split_for(protocol, role) for role in ("train_split", "dev_split"))
        assert card.split_named(train).labelled
        assert card.split_named(dev).labelled
        assert card.split_named(card.split_for(protocol)).labelled
        assert len({train, dev}) == 2


@pytest.mark.parametrize("name", card_names())
def test_each_card_is_consistent(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    assert len({split.name for split in card.splits}) == len(card.splits)
    assert len({path for split in card.splits for path in split.files}) == sum(len(s.files) for s in card.splits)
    for split in card.splits:
        assert split.published.rows > 0
        assert len(split.published.sha256) in {0, 64}
        assert split.sample is None or split.sample.rows < split.published.rows
    for family, short in card.default.items():
        assert card.protocol(short).family == family
    for protocol in card.protocols:
        assert protocol.id.startswith(f"{name}/")
        assert (protocol.options > 0) == (card.kind in {"choice", "pair"})
        assert card.kind != "pair" or protocol.options == len(card.labels)


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("race", "bert", "race/megatron"),
        ("race", "gpt", "race/last-token"),
        ("piqa", "bert", "piqa/pair"),
        ("piqa", "gpt", "piqa/lm-eval"),
        ("mnli", "bert", "mnli/megatron"),
        ("squad", "bert", "squad/v1"),
        ("lambada", "gpt", "lambada/megatron-strict"),
        ("race/all", "gpt", "race/all"),
    ],
)
def test_a_tasks_name_means_the_default_protocol_of_the_models_family(name: str, family: str, expected: str) -> None:
    assert chosen(name, family=family) == [expected]


def test_a_star_means_the_protocols_of_the_family_each_once() -> None:
    assert chosen("race/*", family="bert") == ["race/megatron", "race/longest-context"]
    zero_shot = ["race/all", "race/lm-eval", "race/gpt3"]
    assert chosen("race", "race/*", "piqa", family="gpt") == ["race/last-token", *zero_shot, "piqa/lm-eval"]
    assert [protocol.id for _, protocol in select(["race/*"])] == [item.id for item in load_card("race").protocols]


def test_all_means_every_protocol_unless_one_is_called_so() -> None:
    for name in ("lambada", "wikitext103", "piqa"):
        assert select([f"{name}/all"]) == select([f"{name}/*"])
    assert [protocol.id for _, protocol in select(["race/all"])] == ["race/all"]
    with pytest.raises(UsageError, match="`mnli/all` scores a BERT"):
        chosen("mnli/all", family="gpt")
    with pytest.raises(UsageError, match=r"`mnli/\*` scores a BERT"):
        chosen("mnli/*", family="gpt")


@pytest.mark.parametrize(("name", "family"), [("mnli", "gpt"), ("race/megatron", "gpt"), ("lambada", "bert")])
def test_a_task_without_a_protocol_for_the_family_says_what_there_is(name: str, family: str) -> None:
    with pytest.raises(UsageError, match=f"`run` holds a {family.upper()}") as caught:
        chosen(name, family=family)
    assert f"for a {family.upper()} there is `--task " in caught.value.hint


def test_a_card_says_which_protocols_are_defaults() -> None:
    card = load_card("race")
    assert [item.id for item in card.protocols if card.is_default(item)] == ["race/megatron", "race/last-token"]
    assert card.default_for("bert") == card.default_for() == "race/megatron"
    assert load_card("lambada").default_for("bert") == "lambada/megatron-strict"
    assert not load_card("wikitext103").is_default(load_card("wikitext103").protocol("masked"))


def test_a_split_is_found_by_name_and_the_default_by_none() -> None:
    card = load_card("mnli")
    assert card.split_named().name == card.split_named("dev-matched").name == "dev-matched"
    with pytest.raises(UsageError, match="task `mnli` has no split `dev-unmatched`") as caught:
        card.split_named("dev-unmatched")
    assert caught.value.hint == "did you mean `dev-matched`?"


def test_a_protocol_may_have_splits_of_its_own() -> None:
    card = load_card("squad")
    first, second = card.protocols
    assert [card.split_for(first), card.split_for(second)] == ["dev-v1.1", "dev-v2.0"]
    assert card.split_for(second, "train_split") == "train-v2.0"
    assert load_card("lambada").split_for(load_card("lambada").protocols[0], "train_split") == ""


@pytest.mark.parametrize(
    ("old", "new", "error", "expected"),
    [
        ('title = "RACE"\n', "", DataError, "'title'"),
        ('title = "RACE"\n', 'title = "RACE"\ntitel = 1\n', DataError, "'titel'"),
        ('files = ["RACE/dev', 'fils = ["RACE/dev', DataError, "'fils'"),
        ("rows = 4887", "row = 4887", DataError, "'row'"),
        ('config = "all"', 'configuration = "all"', DataError, "'configuration'"),
        ('head = "multichoice"', 'heads = "multichoice"', DataError, "'heads'"),
        ('bert = "megatron"', 'bert = "megatrons"', UsageError, "no protocol `megatrons`"),
        ('dev_split = "dev"', 'dev_split = "dove"', UsageError, "no split `dove`"),
    ],
)
def test_a_wrong_card_is_refused(old: str, new: str, error: type[Exception], expected: str, tmp_path: Path) -> None:
    assert old in RACE
    path = tmp_path / "race.toml"
    path.write_text(RACE.replace(old, new, 1))
    with pytest.raises(error, match=expected):
        read_card(path)


def test_the_cards_numbers_are_the_published_ones() -> None:
    """Counts of the papers and of GLUE, not of any file here."""
    counts = {f"{name}/{split.name}": split.published.rows for name in QUESTIONS for split in load_card(name).splits}
    assert counts == {
        "mnli/train": 392_702,
        "mnli/dev-matched": 9_815,
        "mnli/dev-mismatched": 9_832,
        "mnli/test-matched": 9_796,
        "mnli/test-mismatched": 9_847,
        "piqa/train": 16_113,
        "piqa/valid": 1_838,
        "piqa/test": 3_084,
        "qqp/train": 363_846,
        "qqp/dev": 40_430,
        "qqp/test": 390_965,
        "race/train": 25_421 + 62_445,
        "race/dev": 1_436 + 3_451,
        "race/test": 1_436 + 3_498,
        "squad/train-v1.1": 87_599,
        "squad/dev-v1.1": 10_570,
        "squad/train-v2.0": 130_319,
        "squad/dev-v2.0": 11_873,
    }
