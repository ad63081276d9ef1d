"""Cells of other people's tables are read for what they say, and never for more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpeval.leaderboard.importing.cleaning import clean_name, clean_size, clean_value
from mpeval.leaderboard.importing.drafts import is_address

VALUES: list[tuple[object, str | None, list[str]]] = [
    ("82.0", "82.0", []),
    (" 82.0\u00a0", "82.0", []),
    (49.0, "49.0", []),
    (7, "7", []),
    (1e-05, "0.00001", []),
    ("82.0%", "82.0", ["percent-sign"]),
    ("82.0 %", "82.0", ["percent-sign"]),
    ("**82.0**", "82.0", ["marks"]),
    ("82.0†", "82.0", ["marks"]),
    ("82.0%*", "82.0", ["percent-sign"]),
    ("90.5 ± 0.3", "90.5", ["spread"]),
    ("90.5 +/- 0.3", "90.5", ["spread"]),
    ("90.5% ± 0.3%", "90.5", ["percent-sign", "spread"]),
    ("90.5(3)", "90.5", ["spread"]),
    ("17.1(16.1 with basic dynamic evaluation)", "17.1", ["remark"]),
    ("17.1 [test]", "17.1", ["remark"]),
    ("~17.1", "17.1", ["approximate"]),
    ("≈ 17.1 (ours)", "17.1", ["approximate", "remark"]),
    ("82,5", "82.5", ["decimal-comma"]),
    ("1,234.5", "1234.5", ["thousands"]),
    ("1,234,567", "1234567", ["thousands"]),
    ("1,234", None, ["ambiguous-comma"]),
    (".5", "0.5", ["notation"]),
    ("1.5e1", "15", ["notation"]),
    ("", None, ["missing"]),
    ("-", None, ["missing"]),
    ("—", None, ["missing"]),
    ("N/A", None, ["missing"]),
    (None, None, ["missing"]),
    ("<0.1", None, ["bound"]),
    ("≥ 80%", None, ["bound"]),
    ("144.4M", None, ["size-not-score"]),
    ("-3.5", None, ["negative"]),
    ("−3.5 %", None, ["negative"]),
    (-3.5, None, ["negative"]),
    ("inf", None, ["not-finite"]),
    (math.nan, None, ["not-finite"]),
    (math.inf, None, ["not-finite"]),
    (True, None, ["not-a-number"]),
    (10**400, None, ["not-a-number"]),
    ([82.0], None, ["not-a-number"]),
    ("82.0 / 83.0", None, ["not-a-number"]),
    ("1.2.3", None, ["not-a-number"]),
    ("eighty", None, ["not-a-number"]),
    ("8" * 300, None, ["not-a-number"]),
    ("~" * 100, None, ["not-a-number"]),
    ("٨٢", None, ["not-a-number"]),
]


@pytest.mark.parametrize(("raw", "printed", "codes"), VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_is_read_for_what_it_says(raw: object, printed: str | None, codes: list[str]) -> None:
    cleaned = clean_value(raw)
    assert cleaned.printed == printed
    assert [code for code, _ in cleaned.found] == codes
    if {"remark", "spread", "approximate", "marks"} & set(codes):
        assert cleaned.remark == raw


def test_a_models_name_is_no_value() -> None:
    name = "Megatron-Turing NLG 530B (Few-Shot)"
    assert [code for code, _ in clean_value(" megatron-turing  NLG 530B (Few-Shot)", name=name).found] == [
        "value-is-name"
    ]


@given(st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.none(), st.booleans()))
def test_whatever_is_read_is_a_plain_number_or_has_a_reason(raw: object) -> None:
    cleaned = clean_value(raw, name="model")
    if cleaned.printed is None:
        assert cleaned.found
    else:
        assert float(cleaned.printed) >= 0
        assert set(cleaned.printed) <= set("0123456789.")


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        ("8.3B", 8.3e9),
        ("8300M", 8.3e9),
        ("345m", 345e6),
        ("~257M", 257e6),
        ("1.5T", 1.5e12),
        ("354871296", 354871296.0),
        (354871296, 354871296.0),
        ("1,542M", 1542e6),
        ("-", None),
        ("", None),
        (None, None),
        ("0M", None),
        ("17.1", None),
        ("large", None),
        (math.nan, None),
        (True, None),
        (10**400, None),
        ("9" * 400 + "T", None),
    ],
)
def test_a_size_is_a_number_of_parameters(raw: object, size: float | None) -> None:
    found, said = clean_size(raw)
    assert found == size
    assert [code for code, _ in said] == (
        ["approximate"] if raw == "~257M" else ["size"] if raw in ("large", "0M", "17.1", "9" * 400 + "T") else []
    )


@pytest.mark.parametrize(
    ("raw", "name", "shots", "codes"),
    [
        ("GPT-3 175B (0-shot)", "GPT-3 175B", "0", ["shots-in-name"]),
        ("GPT-3 175B (zero-shot)", "GPT-3 175B", "0", ["shots-in-name"]),
        ("Pythia 12B(Zero-Shot)", "Pythia 12B", "0", ["shots-in-name"]),
        ("PaLM 540B (Zero Shot)", "PaLM 540B", "0", ["shots-in-name"]),
        ("PaLM 540B (one-shot)", "PaLM 540B", "1", ["shots-in-name"]),
        ("GPT-3 (few-shot, k=10)", "GPT-3", "10", ["shots-in-name"]),
        ("GPT-3 (few-shot)", "GPT-3", "few", ["shots-in-name"]),
        ("BLOOM (15-shot) v2", "BLOOM v2", "15", ["shots-in-name"]),
        ("GPT-2-small 124M fine-tuned", "GPT-2-small 124M fine-tuned", "finetuned", ["shots-in-name"]),
        ("Cohere  Large", "Cohere Large", "", ["spaces"]),
        ("∞-former", "∞-former", "", []),
        ("[?]-former", "[?]-former", "", ["odd-name"]),
        ("-former", "-former", "", ["odd-name"]),
        ("test", "", "", ["placeholder-name"]),
        ("", "", "", ["placeholder-name"]),
        (None, "", "", ["placeholder-name"]),
        (["GPT"], "", "", ["placeholder-name"]),
    ],
)
def test_a_name_keeps_what_it_says_but_examples(raw: object, name: str, shots: str, codes: list[str]) -> None:
    cleaned = clean_name(raw)
    assert (cleaned.text, cleaned.shots) == (name, shots)
    assert [code for code, _ in cleaned.found] == codes


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("https://arxiv.org/abs/1909.08053v4", True),
        ("http://tia.today", True),
        ("javascript:alert(1)", False),
        ("arxiv.org/abs/1", False),
        ("https://", False),
        ("https://a b", False),
        ("HTTPS://example.org", False),
        ("\x01https://example.org", False),
        ("https://[::1", False),
        ("", False),
        (None, False),
    ],
)
def test_a_source_has_an_address_of_the_web(text: object, whether: bool) -> None:
    assert is_address(text) is whether
