"""Constants of the protocols that are known without any model: counted from the real files, compared with print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpeval.tasks.perplexity import count_windows, windows


@pytest.fixture
def constants(shared_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs `mpeval tasks check NAME --json` on the real files and returns its document."""
    from mpeval.cli import main

    def check(name: str) -> dict[str, Any]:
        folder = str(shared_data / "gpt2-bpe")
        argv = ["mpeval", "tasks", "check", name, "--data", str(shared_data), "--tokenizer", folder, "--json"]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return check


def test_lambada_has_the_rows_and_target_lengths_counted_for_the_official_file(constants: Any) -> None:
    found = constants("lambada/megatron-strict")["lambada/megatron-strict"]
    assert found["rows"] == 5153
    assert found["target_tokens"] == {"1": 4013, "2": 913, "3": 208, "4": 16, "5": 3}
    assert found["multi_token_targets"] == 1140
    assert found["mean_tokens"] == 83.49
    assert found["max_tokens"] == 224
    assert found["flags"] == []


def test_strict_and_harness_targets_differ_in_the_seven_rows_whose_word_follows_a_newline(constants: Any) -> None:
    found = constants("lambada")
    assert found["lambada/lm-eval-openai"]["rows"] == found["lambada/megatron-last-token"]["rows"] == 5153
    assert found["lambada/lm-eval-openai"]["target_tokens"]["1"] == 4010
    assert found["lambada/megatron-last-token"]["target_tokens"] == {"1": 5153}


def test_wikitext_has_the_token_counts_of_the_paper_and_the_ratio_of_published_logs(constants: Any) -> None:
    found = constants("wikitext103")["wikitext103/megatron"]
    assert found["original_tokens"] == 245566
    assert found["scored_tokens"] == 270329
    assert found["token_ratio"] == 1.1008449901248143
    assert found["windows"] == 8448
    assert found["useful_windows"] == 8417
    assert found["articles"] == 60


@pytest.mark.parametrize(
    ("tokens", "total", "useful"), [(10, 1, 1), (1025, 32, 1), (1026, 33, 2), (1060, 34, 3), (5000, 157, 126)]
)
def test_window_counts_of_short_texts(tokens: int, total: int, useful: int) -> None:
    assert count_windows(tokens, 32) == total
    assert len(list(windows(tokens, 1024, 32))) == useful


@pytest.mark.parametrize("stride", [1, 7, 32, 100, 128])
@pytest.mark.parametrize("tokens", [2, 3, 127, 128, 129, 130, 257, 1000])
def test_each_token_but_the_first_is_scored_exactly_once_with_all_context_that_fits(tokens: int, stride: int) -> None:
    scored: list[int] = []
    for number, (start, first, end) in enumerate(windows(tokens, 128, stride)):
        assert start == number * stride
        assert 1 <= end - 1 - start <= 128
        scored += range(first, end)
    assert scored == list(range(1, tokens))
