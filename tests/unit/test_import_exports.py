"""What is exported comes back by an import: all that the format carries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from imports import bring, numbers_of

from mpeval.folders import data_folder
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.exports import eee, hub, papers
from mpeval.leaderboard.reported import Reported


@pytest.fixture(scope="module")
def published() -> list[Reported]:
    """Return the committed numbers."""
    return numbers_of(data_folder("leaderboard") / "published.jsonl")


def carried(one: Reported) -> Any:
    """Return what both formats carry; figures without zeros at their ends."""
    values = {one.metric.name: float(one.printed), **{name: float(text) for name, text in one.printed_others.items()}}
    model = (one.model.name, one.model.shots)
    return (one.task, one.title, one.protocol, one.part, values, model, one.source.url, one.n, sorted(one.flags))


def ordered(numbers: list[Reported]) -> list[Any]:
    return sorted((carried(one) for one in numbers), key=repr)


def test_a_model_index_brings_every_number_back(published: list[Reported], tmp_path: Path) -> None:
    (text,) = hub.export_model_index(boards(published)).files.values()
    file, store = tmp_path / "model-index.yaml", tmp_path / "store.jsonl"
    file.write_text(text, encoding="utf-8")
    imported = bring(file, "model-index", store)
    assert [finding for finding in imported.findings if not finding.kept] == []
    assert ordered(numbers_of(store)) == ordered(published)


def test_files_of_every_eval_ever_bring_every_number_back(published: list[Reported], tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    some = [one for one in published if one.task in {"race", "wikitext103"}]
    for path, text in eee.export(boards(some)).files.items():
        file = tmp_path / Path(path).name
        file.write_text(text, encoding="utf-8")
        assert [finding for finding in bring(file, "eee", store).findings if not finding.kept] == []
    back = numbers_of(store)
    assert ordered(back) == ordered(some)
    sources = {(*carried(one)[:2], one.source.title, one.source.locator, one.date) for one in some}
    assert {(*carried(one)[:2], one.source.title, one.source.locator, one.date) for one in back} == sources


def test_evaluation_tables_bring_every_value_back(published: list[Reported], tmp_path: Path) -> None:
    file, store = tmp_path / papers.FILE, tmp_path / "store.jsonl"
    export = papers.export(boards(published))
    file.write_text(export.files[papers.FILE], encoding="utf-8")
    bring(file, "pwc", store)

    def values(numbers: list[Reported]) -> Counter[Any]:
        return Counter(
            (one.task, name, printed, one.source.url)
            for one in numbers
            for name, printed in {one.metric.name: one.printed, **one.printed_others}.items()
        )

    back = values(numbers_of(store))
    # a table has one perplexity a word, whatever it is called here
    unknown = {key for key in back - values(published) if key[1] != "word_perplexity"}
    assert unknown == set()
    assert sum(back.values()) > 150
