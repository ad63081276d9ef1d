"""A corpus has the ids that the `tokenizers` library gives, with any workers, and a run that is killed goes on."""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import tokenizer_json
from texts import TEXTS, json_lines, parquet, plain, write_all_kinds, write_bpe, write_wordpiece
from tokenizers import Tokenizer as Backend

from mpeval.corpus import compressed, preprocess, readers, unfinished
from mpeval.corpus.encoding import Encoder, Packed, Settings
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.preprocess import Options, Written
from mpeval.corpus.readers import Batch
from mpeval.corpus.sentences import sentences
from mpeval.errors import DataError, LaunchError, MpevalError, OutputError, TokenizerError, UsageError
from mpeval.tokenizer import find_tokenizer


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many batches out of little text."""
    monkeypatch.setattr(compressed, "BLOCK", 500)
    monkeypatch.setattr(readers, "BATCH", 300)


@pytest.fixture
def bpe(tmp_path: Path) -> Settings:
    return Settings(tokenizer=write_bpe(tmp_path / "bpe"), append_eod=True)


@pytest.fixture
def bert(tmp_path: Path) -> Settings:
    return Settings(tokenizer=write_wordpiece(tmp_path / "bert"), split_sentences=True)


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, ...]:
    """Return three files of documents, empty ones among them."""
    (tmp_path / "a.jsonl").write_bytes(json_lines([*TEXTS, "", " \n"]))
    (tmp_path / "b.txt").write_bytes(plain(TEXTS[::-1]))
    parquet(tmp_path / "c.parquet", TEXTS[::2])
    return tuple(str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.parquet"))


def run(output: Path, inputs: tuple[str, ...], settings: Settings, **changes: Any) -> Written:
    made = Options(inputs=inputs, output=output, settings=settings, workers=1, quiet=True)
    return preprocess.preprocess(replace(made, **changes))


def files(prefix: Path) -> tuple[bytes, bytes]:
    return prefix.with_name(f"{prefix.name}.bin").read_bytes(), prefix.with_name(f"{prefix.name}.idx").read_bytes()


def documents(dataset: IndexedDataset) -> list[list[list[int]]]:
    ends = dataset.documents.tolist()
    return [[ids.tolist() for ids in dataset[a:b]] for a, b in itertools.pairwise(ends)]


def test_a_gpt_corpus_has_the_librarys_ids(inputs: tuple[str, ...], bpe: Settings, tmp_path: Path) -> None:
    backend = Backend.from_str(tokenizer_json())
    texts = [*TEXTS, *TEXTS[::-1], *TEXTS[::2]]
    written = run(tmp_path / "out" / "corpus", inputs, bpe)
    dataset = IndexedDataset(tmp_path / "out" / "corpus")
    assert documents(dataset) == [[[*backend.encode(text).ids, 0]] for text in texts]
    assert (written.counts.documents, written.counts.sequences) == (len(texts), len(texts))
    assert written.counts.tokens == dataset.tokens
    assert written.counts.empty == 2
    assert written.dtype == dataset.dtype == np.uint16
    assert sorted(os.listdir(tmp_path / "out")) == ["corpus.bin", "corpus.idx"]
    run(tmp_path / "plain", inputs, replace(bpe, append_eod=False))
    assert [ids[-1] for ids in IndexedDataset(tmp_path / "plain")[:3]] == [ids[-2] for ids in dataset[:3]]


def test_a_bert_corpus_has_a_sequence_for_each_sentence(
    inputs: tuple[str, ...], bert: Settings, tmp_path: Path
) -> None:
    run(tmp_path / "corpus", inputs[:1], bert)
    backend = find_tokenizer(bert.tokenizer, []).backend
    expected = [[backend.encode(sentence).ids for sentence in sentences(text)] for text in TEXTS]
    assert documents(IndexedDataset(tmp_path / "corpus")) == expected
    assert max(map(len, expected)) > 10


def test_what_has_no_token_is_left_out_and_counted(bert: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["\x00\x01", "a b.\n\n\x00\n\nhe", "", "\ufffd"]))
    written = run(tmp_path / "corpus", (str(tmp_path / "a.jsonl"),), bert)
    assert written.counts.empty == 3
    assert [len(document) for document in documents(IndexedDataset(tmp_path / "corpus"))] == [2]


def test_every_kind_of_input_gives_the_same_bytes(bpe: Settings, tmp_path: Path) -> None:
    made = {}
    for number, path in enumerate(write_all_kinds(tmp_path / "in")):
        run(tmp_path / f"out{number}", (str(path),), bpe)
        made[path.name] = files(tmp_path / f"out{number}")
    assert len(set(made.values())) == 1
    assert len(made) > 10


def test_the_number_of_workers_changes_nothing(
    inputs: tuple[str, ...], bpe: Settings, bert: Settings, tmp_path: Path
) -> None:
    for name, settings in (("bpe", bpe), ("bert", bert)):
        run(tmp_path / f"{name}1", inputs, settings)
        run(tmp_path / f"{name}2", inputs, settings, workers=2)
        assert files(tmp_path / f"{name}2") == files(tmp_path / f"{name}1")


def test_a_mistake_in_a_worker_comes_back_as_it_is(bpe: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS) + b"{\n" + json_lines(TEXTS))
    with pytest.raises(DataError, match=f"a.jsonl` line {len(TEXTS) + 1} is not JSON") as raised:
        run(tmp_path / "corpus", (str(tmp_path / "a.jsonl"),), bpe, workers=2)
    assert raised.value.hint


def test_other_tokenizers_take_the_librarys_own_way(inputs: tuple[str, ...], tmp_path: Path) -> None:
    content = json.loads(tokenizer_json())
    content["normalizer"] = {"type": "NFC"}
    write_bpe(tmp_path / "bpe")
    (tmp_path / "bpe" / "tokenizer.json").write_text(json.dumps(content))
    run(tmp_path / "corpus", inputs[:1], Settings(tokenizer=tmp_path / "bpe"))
    backend = Backend.from_str(json.dumps(content))
    assert documents(IndexedDataset(tmp_path / "corpus")) == [[backend.encode(text).ids] for text in TEXTS]


def test_an_end_of_text_in_a_document_is_the_librarys(bpe: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["a river<|endoftext|> street"]))
    run(tmp_path / "corpus", (str(tmp_path / "a.jsonl"),), bpe)
    expected = [*Backend.from_str(tokenizer_json()).encode("a river<|endoftext|> street").ids, 0]
    assert IndexedDataset(tmp_path / "corpus")[0].tolist() == expected
    assert expected.count(0) == 2


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    write_wordpiece(tmp_path / "bert", ["[UNK]", *(f"[unused{number}]" for number in range(65600)), "river"])
    (tmp_path / "a.jsonl").write_bytes(json_lines(["river river"]))
    run(tmp_path / "corpus", (str(tmp_path / "a.jsonl"),), Settings(tokenizer=tmp_path / "bert"))
    dataset = IndexedDataset(tmp_path / "corpus")
    assert dataset.dtype == np.int32
    assert dataset[0].tolist() == [65601, 65601]


class Killed(BaseException):
    """Ends a run as a kill does, no handler of the program in between."""


def dying(monkeypatch: pytest.MonkeyPatch, batches: int, *, every: float) -> list[Batch]:
    """Let the next run die at a batch; return the list of what it encodes."""
    monkeypatch.setattr(unfinished, "EVERY", every)
    seen: list[Batch] = []
    encode = Encoder.encode

    def counted(self: Encoder, batch: Batch) -> Packed:
        if len(seen) == batches:
            raise Killed
        seen.append(batch)
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode", counted)
    return seen


@pytest.fixture
def whole(inputs: tuple[str, ...], bpe: Settings, tmp_path: Path) -> tuple[int, tuple[bytes, bytes]]:
    """Return the number of batches, and the bytes of a run that nothing disturbs."""
    run(tmp_path / "whole", inputs, bpe)
    field = bpe.field
    count = sum(1 for name in inputs for _ in readers.batches(readers.find_source(name, field), field))
    return count, files(tmp_path / "whole")


@pytest.mark.parametrize("every", [-1.0, 3600.0], ids=["saved", "not saved"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    every: float, whole: tuple[int, tuple[bytes, bytes]], inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    count, expected = whole
    assert count > 8
    for killed_at in range(count):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, killed_at, every=every)
            with pytest.raises(Killed):
                run(tmp_path / "corpus", inputs, bpe)
        assert not (tmp_path / "corpus.idx").exists()
        with pytest.MonkeyPatch.context() as patch:
            seen = dying(patch, -1, every=every)
            written = run(tmp_path / "corpus", inputs, bpe)
        assert files(tmp_path / "corpus") == expected
        assert len(seen) == (count - killed_at if every < 0 else count)
        assert (written.resumed.documents > 0) == (every < 0 and killed_at > 0)
        for end in (".bin", ".idx"):
            (tmp_path / f"corpus{end}").unlink()
        assert not (tmp_path / "corpus.parts").exists()


def test_a_run_killed_again_and_again_arrives(
    whole: tuple[int, tuple[bytes, bytes]], inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    for _ in range(whole[0] - 1):
        stop_in(1, inputs, bpe, tmp_path / "corpus")
    assert run(tmp_path / "corpus", inputs, bpe, workers=2).counts.empty == 2
    assert files(tmp_path / "corpus") == whole[1]


@pytest.mark.parametrize("moment", [1, 2])
@pytest.mark.parametrize("force", [False, True])
def test_a_run_killed_while_it_puts_files_in_place_goes_on(
    moment: int,
    force: bool,
    whole: tuple[int, tuple[bytes, bytes]],
    inputs: tuple[str, ...],
    bpe: Settings,
    tmp_path: Path,
) -> None:
    if force:
        run(tmp_path / "corpus", inputs[1:], bpe)
    replaced = []
    replace_file = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.parent == tmp_path:
            replaced.append(target.name)
            if len(replaced) == moment:
                raise Killed
        replace_file(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run(tmp_path / "corpus", inputs, bpe, force=force)
    assert replaced == ["corpus.bin", "corpus.idx"][:moment]
    assert not (tmp_path / "corpus.idx").exists()
    with pytest.MonkeyPatch.context() as patch:
        seen = dying(patch, -1, every=3600.0)
        run(tmp_path / "corpus", inputs, bpe, force=force)
    assert seen == []
    assert files(tmp_path / "corpus") == whole[1]


def stop_in(batches: int, inputs: tuple[str, ...], settings: Settings, output: Path) -> None:
    """Kill a run after so many batches, each of which is on disk."""
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, batches, every=-1.0)
        with pytest.raises(Killed):
            run(output, inputs, settings)


def test_inputs_that_changed_meanwhile_are_read_again(
    whole: tuple[int, tuple[bytes, bytes]], inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    first = sum(1 for _ in readers.batches(readers.find_source(inputs[0], "text"), "text"))
    a, b, c = inputs
    changed: dict[str, tuple[tuple[str, ...], int]] = {
        "nothing": ((a, b, c), first + 2),
        "the last": ((a, b), first + 2),
        "the one being read": ((a, c), first),
        "the first": ((c, b), 0),
        "the order": ((b, a, c), 0),
    }
    for chosen, kept in changed.values():
        stop_in(first + 2, inputs, bpe, tmp_path / "corpus")
        with pytest.MonkeyPatch.context() as patch:
            seen = dying(patch, -1, every=3600.0)
            run(tmp_path / "corpus", chosen, bpe)
            taken = len(seen)
        run(tmp_path / "straight", chosen, bpe)
        assert files(tmp_path / "corpus") == files(tmp_path / "straight")
        count = sum(1 for name in chosen for _ in readers.batches(readers.find_source(name, "text"), "text"))
        assert count - taken == kept
        for name in ("corpus", "straight"):
            for end in (".bin", ".idx"):
                (tmp_path / f"{name}{end}").unlink()


@pytest.mark.parametrize("other", ["inputs", "settings"])
def test_what_another_run_wrote_over_is_not_counted(
    other: str, whole: tuple[int, tuple[bytes, bytes]], inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    stop_in(8, inputs, bpe, tmp_path / "corpus")
    chosen, settings = (inputs[::-1], bpe) if other == "inputs" else (inputs, replace(bpe, append_eod=False))
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, 9, every=3600.0)
        with pytest.raises(Killed):
            run(tmp_path / "corpus", chosen, settings, force=True)
    assert run(tmp_path / "corpus", inputs, bpe, force=True).resumed.documents == 0
    assert files(tmp_path / "corpus") == whole[1]


def test_a_mended_line_does_not_cost_the_inputs_before_it(
    inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(json_lines(TEXTS) + b"{\n")
    given = (inputs[0], str(bad), inputs[1])
    with pytest.MonkeyPatch.context() as patch:
        before = dying(patch, -1, every=-1.0)
        with pytest.raises(DataError, match=r"bad.jsonl` line"):
            run(tmp_path / "corpus", given, bpe)
    bad.write_bytes(json_lines(TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        seen = dying(patch, -1, every=-1.0)
        run(tmp_path / "corpus", given, bpe)
    assert inputs[0] in {batch.source for batch in before}
    assert {batch.source for batch in seen} == {str(bad), inputs[1]}
    run(tmp_path / "straight", given, bpe)
    assert files(tmp_path / "corpus") == files(tmp_path / "straight")


def test_a_run_of_other_settings_is_refused(
    inputs: tuple[str, ...], bpe: Settings, bert: Settings, tmp_path: Path
) -> None:
    stop_in(3, inputs, bpe, tmp_path / "corpus")
    others = {
        "--append-eod is `True`, this one's `False`": replace(bpe, append_eod=False),
        "--split-sentences is `False`, this one's `True`": replace(bpe, split_sentences=True),
        "--field is `text`, this one's `id`": replace(bpe, field="id"),
        "--tokenizer is `sha256:": replace(bert, split_sentences=False, append_eod=False),
    }
    for says, settings in others.items():
        chosen = inputs[:1] if settings.field == "id" else inputs
        with pytest.raises(OutputError) as raised:
            run(tmp_path / "corpus", chosen, settings)
        assert raised.value.message.startswith(f"`{tmp_path / 'corpus.parts'}` is of another run: its {says}")
        assert "--force" in raised.value.hint
    run(tmp_path / "corpus", inputs, replace(bpe, append_eod=False), force=True)
    run(tmp_path / "straight", inputs, replace(bpe, append_eod=False))
    assert files(tmp_path / "corpus") == files(tmp_path / "straight")


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"settings": {}, "inputs": ["a", "b"], "starts": [{}]}'])
def test_a_damaged_state_is_an_error(content: str, inputs: tuple[str, ...], bpe: Settings, tmp_path: Path) -> None:
    stop_in(3, inputs, bpe, tmp_path / "corpus")
    (tmp_path / "corpus.parts" / "state.json").write_text(content)
    with pytest.raises(OutputError, match=r"state.json` is damaged") as raised:
        run(tmp_path / "corpus", inputs, bpe)
    assert raised.value.hint == f"remove `{tmp_path / 'corpus.parts'}`"


@pytest.mark.parametrize("name", ["ids", "lengths", "documents"])
def test_a_file_shorter_than_its_state_is_an_error(
    name: str, inputs: tuple[str, ...], bpe: Settings, tmp_path: Path
) -> None:
    stop_in(3, inputs, bpe, tmp_path / "corpus")
    path = tmp_path / "corpus.parts" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(OutputError, match=f"{name}` is shorter than its state says"):
        run(tmp_path / "corpus", inputs, bpe)


def test_two_runs_do_not_write_one_corpus(inputs: tuple[str, ...], bpe: Settings, tmp_path: Path) -> None:
    (tmp_path / "corpus.parts").mkdir()
    held = os.open(tmp_path / "corpus.parts", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match=r"another run is writing `.*corpus`"):
        run(tmp_path / "corpus", inputs, bpe)
    os.close(held)
    run(tmp_path / "corpus", inputs, bpe)


def test_an_existing_corpus_is_replaced_only_by_force(inputs: tuple[str, ...], bpe: Settings, tmp_path: Path) -> None:
    run(tmp_path / "corpus", inputs[:1], bpe)
    before = files(tmp_path / "corpus")
    for prefix in ("corpus", "corpus.bin", "corpus.idx"):
        with pytest.raises(OutputError, match=r"corpus.idx` is already there") as raised:
            run(tmp_path / prefix, inputs[1:], bpe)
        assert "--force" in raised.value.hint
    (tmp_path / "corpus.idx").unlink()
    with pytest.raises(OutputError, match=r"corpus.bin` is already there"):
        run(tmp_path / "corpus", inputs[1:], bpe)
    run(tmp_path / "corpus", inputs[1:], bpe, force=True)
    run(tmp_path / "other", inputs[1:], bpe)
    assert files(tmp_path / "corpus") == files(tmp_path / "other") != before


REFUSED: dict[str, tuple[tuple[str, ...], str, str, type[MpevalError], str]] = {
    "no text": (("empty.jsonl",), "bpe", "out", DataError, "there is no text in the 1 inputs: 2 empty documents"),
    "the same twice": (("a.jsonl", "./bpe/../a.jsonl"), "bpe", "out", UsageError, "is given twice"),
    "no input": ((), "bpe", "out", UsageError, "no input is given"),
    "no end of text": (("a.jsonl",), "bert", "out", TokenizerError, r"`<\|endoftext\|>` token, which `--append-eod`"),
    "no tokenizer": (("a.jsonl",), "absent", "out", TokenizerError, "no such tokenizer"),
    "no name": (("a.jsonl",), "bpe", "", UsageError, "`--output .` names no files"),
    "a file for a folder": (("a.jsonl",), "bpe", "a.jsonl/out", OutputError, "cannot write"),
}


@pytest.mark.usefixtures("inputs", "bpe", "bert")
@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told_and_leave_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, tokenizer, output, kind, says = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_bytes(json_lines(["", " "]))
    with pytest.raises(kind, match=says) as raised:
        run(Path(output), given, Settings(tokenizer=Path(tokenizer), append_eod=True))
    assert raised.value.hint
    assert not list(tmp_path.glob("out*"))


def test_few_batches_are_read_ahead(bpe: Settings) -> None:
    read = []

    def todo() -> Iterator[tuple[int, Batch]]:
        for number in range(40):
            read.append(number)
            yield number, Batch(source="made", first=1, done=1, texts=("a river",))

    written = 0
    for (number, _), packed in preprocess.encoded(todo(), bpe, 2):
        assert number == written
        assert len(packed.lengths) == 1
        written += 1
        assert len(read) - written <= preprocess.AHEAD * 2
    assert written == 40


def test_a_worker_that_dies_is_an_error(bpe: Settings) -> None:
    batch = Batch(source="made", first=1, done=1, texts=("a river",))
    results = preprocess.encoded(((0, batch) for _ in range(400)), bpe, 2)
    next(results)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(LaunchError, match="a tokenizing process died") as raised:
        list(results)
    assert "--workers" in raised.value.hint


def test_the_library_is_kept_to_one_thread_and_the_setting_put_back(
    inputs: tuple[str, ...], bpe: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    encode = Encoder.encode

    def watched(self: Encoder, batch: Batch) -> Packed:
        seen.add(os.environ["TOKENIZERS_PARALLELISM"])
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode", watched)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    run(tmp_path / "a", inputs, bpe)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    run(tmp_path / "b", inputs, bpe)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert seen == {"false"}
