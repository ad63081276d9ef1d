"""`wikitext103/masked`: what is hidden and asked for, and losses against transformers' Megatron-BERT."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from making import BERT as HEADS
from making import VOCAB, make_checkpoint, run_here, small_config
from ranks import run_ranks
from texts import WORDPIECES, write_wordpiece

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.data import load_data
from mpeval.errors import DataError
from mpeval.folders import data_folder
from mpeval.items import Masked, Scored
from mpeval.models.bert import BERT
from mpeval.parallel.group import Group
from mpeval.scoring import pack, score_any, score_masked
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.masked import MaskedWikiText, hidden_places
from mpeval.tasks.perplexity import detokenize
from mpeval.tokenizer import find_tokenizer

SAMPLES = data_folder("tasks") / "samples"
CONTEXT = 64
PIECES = (*WORDPIECES, *(f"[unused{number}]" for number in range(VOCAB - len(WORDPIECES))))
COMMAND = f"evaluate {{}} --task wikitext103/masked --data {SAMPLES} --device cpu --batch-tokens 200 --quiet"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a BERT of random weights in two tensor-parallel shards, its vocabulary beside it."""
    root = tmp_path_factory.mktemp("masked") / "bert"
    make_checkpoint(root, config=small_config(**HEADS, lm_head_gelu="erf", context=CONTEXT), tp=2, tokenizer=False)
    write_wordpiece(root, PIECES)
    return root


@pytest.fixture(scope="module")
def task(bert: Path) -> MaskedWikiText:
    """Build the protocol on the sample text."""
    card = load_card("wikitext103")
    data = load_data(card, SAMPLES)
    made = build_task(card, card.protocol("masked"), data, find_tokenizer(bert, []), CONTEXT)
    assert isinstance(made, MaskedWikiText)
    return made


def _requests(task: MaskedWikiText) -> list[Masked]:
    return [item.request for item in task.items if isinstance(item.request, Masked)]


def _score(group: Group, root: Path, requests: list[Masked], exact: bool) -> list[Scored]:
    model = load_model(open_checkpoint(root), group)
    assert isinstance(model, BERT)
    scored: dict[int, Scored] = {}
    for batch, *_ in pack(model, requests, 200)[0]:
        found = score_any(model, [requests[index] for index in batch], megatron_exact=exact)
        scored.update(zip(batch, found, strict=True))
    return [scored[index] for index in range(len(requests))]


def _dense(logits: torch.Tensor, request: Masked) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target and the best token, from all logits [time, columns] of a request."""
    logs = logits[torch.from_numpy(request.at)].double().log_softmax(-1)
    return logs.gather(-1, torch.from_numpy(request.target)[:, None])[:, 0], logs.argmax(-1)


# ---- what is hidden ----


def test_windows_hold_the_text_once_and_ask_for_what_they_hide(task: MaskedWikiText, bert: Path) -> None:
    tokenizer = find_tokenizer(bert, [])
    raw = (SAMPLES / "wikitext-103" / "wiki.test.tokens").read_text(encoding="utf-8")
    ids = tokenizer.encode(detokenize(raw))
    cls, sep, mask, unknown = (tokenizer.special_id(token) for token in ("[CLS]", "[SEP]", "[MASK]", "[UNK]"))
    assert unknown in ids
    text: list[int] = []
    for request in _requests(task):
        assert (request.ids[0], request.ids[-1]) == (cls, sep)
        assert request.inputs == min(CONTEXT, len(ids) - len(text) + 2)
        assert np.flatnonzero(request.ids == mask).tolist() == request.at.tolist()
        assert not {mask, unknown} & set(request.target.tolist())
        whole = request.ids.copy()
        whole[request.at] = request.target
        text += whole[1:-1].tolist()
    assert text == ids
    assert task.flags == ("sample-rows", f"window-{CONTEXT}")
    constants = task.constants()
    assert (constants["tokens"], constants["unknown_tokens"]) == (len(ids), ids.count(unknown))
    assert constants["hidden_tokens"] == sum(len(request.target) for request in _requests(task))
    assert constants["windows"] == math.ceil(len(ids) / (CONTEXT - 2))


def test_fifteen_percent_is_hidden_in_whole_known_words() -> None:
    draw = np.random.default_rng(0)
    hits, known_hits = np.zeros(510), np.zeros(510)
    for number in range(500):
        continues, known = draw.random(510) < 0.3, draw.random(510) < 0.95
        words = np.split(np.arange(510), 1 + np.flatnonzero(~continues[1:]))
        for word in words:
            known[word] = known[word].all()
        places = hidden_places(continues, known, number)
        hidden = np.isin(np.arange(510), places)
        assert (np.diff(places) > 0).all()
        assert all(hidden[word].all() or not hidden[word].any() for word in words)
        assert not hidden[~known].any()
        wanted = round(0.15 * int(known.sum()))
        assert wanted <= len(places) < wanted + max(map(len, words))
        assert places.tolist() == hidden_places(continues, known, number).tolist()
        hits += hidden
        known_hits += known
    share = hits / known_hits
    assert hits.sum() / known_hits.sum() == pytest.approx(0.15, abs=0.004)
    assert share.std() == pytest.approx(math.sqrt(0.15 * 0.85 / known_hits.mean()), rel=0.25)  # no place is preferred


@pytest.mark.parametrize(
    ("continues", "known", "places"),
    [
        ("", "", []),
        ("0", "1", [0]),
        ("0", "0", []),
        ("111", "111", [0, 1, 2]),  # a window that begins within a word
        ("0100", "0011", None),
        ("010", "010", []),
    ],
)
def test_small_windows(continues: str, known: str, places: list[int] | None) -> None:
    for number in range(20):
        given = (np.array([letter == "1" for letter in text], dtype=bool) for text in (continues, known))
        found = hidden_places(*given, number).tolist()
        assert found in ([[2], [3]] if places is None else [places])


def test_a_text_of_unknown_tokens_or_a_context_without_room_is_refused(bert: Path, tmp_path: Path) -> None:
    card, tokenizer = load_card("wikitext103"), find_tokenizer(bert, [])
    (tmp_path / "wiki.test.tokens").write_text("Ω Ω Ω\n", encoding="utf-8")
    data = load_data(card, tmp_path, allow_modified=True)
    with pytest.raises(DataError, match=r"has no token to hide: all are \[UNK\]"):
        build_task(card, card.protocol("masked"), data, tokenizer, CONTEXT)
    with pytest.raises(DataError, match="a context of 2 has no room"):
        build_task(card, card.protocol("masked"), data, tokenizer, 2)


# ---- scores ----


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_losses_are_those_of_transformers(tp: int, bert: Path, task: MaskedWikiText, tmp_path: Path) -> None:
    assert run_here(f"convert {bert} {tmp_path / 'theirs'} --format huggingface --quiet") == 0
    theirs = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    requests = _requests(task)
    expected = []
    with torch.inference_mode():
        for request in requests:
            logits = theirs(torch.from_numpy(request.ids)[None]).prediction_logits[0]
            assert logits.shape[-1] == VOCAB
            expected.append(_dense(logits, request))
    for scored in run_ranks(_score, tp, bert, requests, False):
        for ours, (logs, best) in zip(scored, expected, strict=True):
            np.testing.assert_allclose(ours.log_probabilities, logs.numpy(), atol=1e-4)
            assert ours.best.tolist() == best.tolist()


def test_padding_rows_enter_the_softmax_only_when_asked_for(bert: Path, task: MaskedWikiText) -> None:
    requests = _requests(task)[:3]
    model = load_model(open_checkpoint(bert))
    assert isinstance(model, BERT)
    [scored, again] = run_ranks(_score, 2, bert, requests, True)
    plain = score_masked(model, requests)
    for ours, other, without, request in zip(scored, again, plain, requests, strict=True):
        with torch.inference_mode():
            hidden = model.encode(torch.from_numpy(request.ids)[None])
            logs, _ = _dense(model.lm_head(hidden, model.output_table)[0], request)
        np.testing.assert_allclose(ours.log_probabilities, logs.numpy(), atol=2e-5)
        np.testing.assert_array_equal(ours.log_probabilities, other.log_probabilities)
        assert ours.log_probability < without.log_probability - 1e-3


def test_requests_that_cannot_be_scored_are_refused(bert: Path) -> None:
    model = load_model(open_checkpoint(bert))
    assert isinstance(model, BERT)
    ids, nothing = np.arange(CONTEXT + 1), np.arange(0)
    with pytest.raises(DataError, match="does not fit the model's context of 64"):
        score_masked(model, [Masked(ids=ids, at=ids[:1], target=ids[:1])])
    with pytest.raises(DataError, match="a request of 0 masks asks for 0 tokens"):
        score_masked(model, [Masked(ids=ids[:9], at=nothing, target=nothing)])
    with pytest.raises(DataError, match="a request of 1 masks asks for 2 tokens"):
        score_masked(model, [Masked(ids=ids[:9], at=ids[:1], target=ids[:2])])


# ---- the command ----


def _result(folder: Path) -> dict[str, Any]:
    [result] = json.loads((folder / "results.json").read_text())["results"]
    return dict(result)


def test_the_command_sums_up_and_goes_on_after_a_kill(bert: Path, task: MaskedWikiText, tmp_path: Path) -> None:
    command = f"{COMMAND.format(bert)} --output {tmp_path / 'run'}"
    assert run_here(command) == 0
    result = _result(tmp_path / "run")
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    samples = [json.loads(line) for line in lines]
    expected = _score(Group.single(), bert, _requests(task), False)
    for sample, scored in zip(samples, expected, strict=True):
        assert sample["log_probability"] == pytest.approx(scored.log_probability, abs=1e-4)
        assert sum(share[1] for share in sample["documents"]) == pytest.approx(-sample["log_probability"])
    loss = -sum(scored.log_probability for scored in expected)
    tokens = sum(len(scored.best) for scored in expected)
    [metric] = result["metrics"]
    assert (metric["name"], metric["unit"], metric["direction"]) == ("masked_perplexity", "perplexity", "min")
    assert metric["value"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)
    assert metric["interval"] == "student-t of articles"
    assert result["n"] == tokens == task.constants()["hidden_tokens"]
    assert result["flags"] == list(task.flags)
    assert {share[0] for sample in samples for share in sample["documents"]} == {0, 1, 2}

    path.write_text("".join(lines[:3]) + lines[3][:20])
    (tmp_path / "run" / "results.json").unlink()
    assert run_here(command) == 0
    again = _result(tmp_path / "run")
    assert again["items_resumed"] == 3
    assert again["metrics"][0]["value"] == pytest.approx(metric["value"], rel=1e-6)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [sample["id"] for sample in samples]


def test_all_of_a_task_is_what_the_model_can_answer(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = COMMAND.replace("/masked", "/all").format(bert)
    assert run_here(f"{everything} --limit 1 --output {tmp_path / 'run'} --tp 2") == 0
    document = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [result["protocol"] for result in document["results"]] == ["wikitext103/masked"]
    assert document["layout"] == {"tp": 2, "dp": 1}
    gpt = make_checkpoint(tmp_path / "gpt")
    for folder, protocols in ((bert, ["masked"]), (gpt, ["megatron", "disjoint", "lm-eval"])):
        assert run_here(f"tasks check wikitext103 --data {SAMPLES} --tokenizer {folder} --context 64 --json") == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found) == [f"wikitext103/{name}" for name in protocols]
