"""convert, verify, diff and inspect: what they print, write and leave behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    BERT,
    TODAY,
    edit_shard,
    make_checkpoint,
    make_data,
    run_here,
    shard_file,
    small_config,
    tokenizer_json,
)

import mpeval
from mpeval.config import ModelConfig

Output = pytest.CaptureFixture[str]
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt untied": {"tied": False},
    "today": TODAY,
    "today with qkv bias": {**TODAY, "qkv_bias": True},
    "today with qk norm": {**TODAY, "qk_norm": True},
    "bert": BERT,
    "bert post norm": {**BERT, "post_norm": True},
    "bert for multiple choice": {**BERT, "lm_head": False, "binary_head": False, "multichoice_head": True},
    "bert for classification": {**BERT, "lm_head": False, "binary_head": False, "classes": 3},
}
CHAIN = (
    "--format megatron --tp 1",
    "--format megatron --tp 4",
    "--format megatron-core --pp 2",
    "--format torch_dist",
    "--format huggingface",
    "--format megatron-core --tp 2",
)


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(name: str) -> ModelConfig:
    return small_config(**MODELS[name])


def make(root: str, name: str = "gpt", **options: Any) -> Path:
    """Write a checkpoint whose norms and biases are not ones and zeros."""
    from mpeval.checkpoint.weights import MadeWeights
    from mpeval.checkpoint.write import write_megatron
    from mpeval.models.weights import draw_full

    config = model(name)

    def weight(key: str) -> torch.Tensor:
        draw = torch.Generator().manual_seed(sum(map(ord, key)))
        full = draw_full(config, key, 3)
        return full + 0.2 * torch.randn(full.shape, generator=draw)

    write_megatron(Path(root), MadeWeights(config, weight), **options)
    return Path(root)


@pytest.mark.parametrize("name", MODELS)
def test_round_trips_through_every_format_end_with_identical_digests(name: str, capsys: Output) -> None:
    post = "post norm" in name  # Megatron-core does not compute these
    make("0", name, tp=2, iteration=7, naming="megatron" if post else "megatron-core")
    first = mpeval.open_checkpoint("0")
    chain = [options for options in CHAIN if not post or ("core" not in options and "dist" not in options)]
    for number, options in enumerate(chain):
        options = options.replace("--tp 4", f"--tp {min(4, first.config.kv_heads)}")
        assert run_here(f"convert {number} {number + 1} {options} --json") == 0
        content = json.loads(capsys.readouterr().out)
        assert content["digest_before"] == content["digest_after"] == first.digest()
        assert all(tensor["before"] == tensor["after"] for tensor in content["tensors"])
        assert {tensor["name"] for tensor in content["tensors"]} == set(first.config.shapes())
    last = mpeval.open_checkpoint(str(len(chain)))
    assert last.config.computed() == first.config.computed()
    assert run_here(f"diff 0 {len(chain)}") == 0
    assert (
        f"{len(first.tensors)} of {len(first.tensors)} tensors are equal, 0 settings differ" in capsys.readouterr().out
    )


def test_the_end_of_a_conversion_is_the_accounting_and_every_digest(capsys: Output) -> None:
    make_checkpoint(Path("a"), tp=2)
    edit_shard(shard_file(Path("a")), lambda content: content.update({"optimizer": {"step": 5}}))
    assert run_here("convert a b --format megatron-core --tp 4") == 0
    printed = capsys.readouterr()
    opened = mpeval.open_checkpoint("a")
    for name in opened.tensors:
        assert f"│ {name} " in printed.out
        assert opened.tensor_digest(name)[:12] in printed.out
    assert "1 x optimizer state" in printed.out
    assert "copied tokenizer.json" in printed.out
    assert f"digest after  {opened.digest()}" in printed.out
    assert printed.err == ""
    report = json.loads(Path("b/iter_0000001/conversion.json").read_text())
    assert report["digest_after"] == opened.digest()
    assert report["entries_ignored"]["optimizer state"] == 1


def test_what_was_converted_evaluates_to_the_same_numbers(capsys: Output) -> None:
    make_checkpoint(Path("a"), tp=2)
    make_data(Path("data"))
    assert run_here("convert a b --format huggingface --quiet") == 0
    scores = []
    for folder in ("a", "b"):
        assert run_here(f"evaluate {folder} --task lambada --data data --allow-modified-data --json --quiet") == 0
        scores.append(json.loads(capsys.readouterr().out)["results"][0]["metrics"])
    assert scores[0] == scores[1]


def test_todays_gpt_evaluates_at_any_size_and_says_what_it_is(capsys: Output) -> None:
    make_checkpoint(Path("a"), config=small_config(**TODAY), tp=2)
    make_data(Path("data"))
    command = "evaluate a --task lambada --data data --allow-modified-data"
    assert run_here(f"{command} --output one") == 0
    assert "SwiGLU" in capsys.readouterr().out
    assert run_here(f"{command} --tp 2 --output two") == 0
    one, two = (json.loads(Path(folder, "results.json").read_text())["results"][0] for folder in ("one", "two"))
    for ours, theirs in zip(one["metrics"], two["metrics"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)


def test_a_hugging_face_folder_may_have_more_rows_than_its_tokenizer_has_tokens(capsys: Output) -> None:
    make_checkpoint(Path("a"))
    make_data(Path("data"))
    Path("a/tokenizer.json").write_text(tokenizer_json(390))
    assert run_here("convert a b --format huggingface --quiet") == 0
    command = "--task lambada --data data --allow-modified-data --quiet"
    assert run_here(f"evaluate b {command}") == 0
    assert run_here(f"evaluate b {command} --tokenizer a") == 1
    assert "has 390 tokens, the checkpoint 400 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_a_dtype_converts_every_tensor(dtype: str, bytes_each: int, capsys: Output) -> None:
    make("a", "today")
    assert run_here(f"convert a b --format huggingface --dtype {dtype}") == 0
    opened, source = mpeval.open_checkpoint("b"), mpeval.open_checkpoint("a")
    assert {tensor.dtype for tensor in opened.tensors.values()} == {dtype}
    held = sum(tensor.nbytes for tensor in opened.tensors.values())
    assert Path("b/model.safetensors").stat().st_size - held in range(10_000)
    assert held == bytes_each * opened.config.parameters()
    for name in ("layers.1.attention.qkv.weight", "head.weight"):
        expected = source.tensor(name)[: opened.config.vocab].to(getattr(torch, dtype))
        assert torch.equal(opened.tensor(name)[:], expected)
    assert json.loads(Path("b/config.json").read_text())["dtype"] == dtype


def test_megatrons_padding_is_made_and_left_out(capsys: Output) -> None:
    make("a")
    assert run_here("convert a b --format huggingface --quiet") == 0
    assert mpeval.open_checkpoint("b").config.padded_vocab == 400
    assert run_here("convert b c --format megatron --tp 4 --quiet") == 0
    padded = mpeval.open_checkpoint("c")
    assert (padded.config.vocab, padded.config.padded_vocab) == (400, 512)
    assert padded.tensor("embedding.word.weight")[400:].abs().max() == 0
    table = mpeval.open_checkpoint("a").tensor("embedding.word.weight")
    assert run_here("convert a d --format megatron-core --quiet") == 0
    assert torch.equal(mpeval.open_checkpoint("d").tensor("embedding.word.weight")[:], table[:])


def test_a_vocabulary_that_the_file_does_not_say_can_be_given(capsys: Output) -> None:
    make("a")
    edit_shard(shard_file(Path("a")), lambda content: vars(content["args"]).pop("vocab_size"))
    assert run_here("convert a b --format huggingface --quiet") == 0
    assert mpeval.open_checkpoint("b").config.vocab == 512
    assert run_here("convert a c --format huggingface --vocab-size 400 --quiet") == 0
    assert mpeval.open_checkpoint("c").config.vocab == 400
    assert run_here("convert a d --format megatron-core --tp 2 --quiet") == 0
    assert mpeval.open_checkpoint("d").config.origins["vocab"] == mpeval.open_checkpoint("a").config.origins["vocab"]


def test_force_replaces_the_iteration_and_leaves_others_alone(capsys: Output) -> None:
    make("a", iteration=5)
    make("b", "gpt untied", iteration=5)
    make("b", iteration=3)
    Path("b/keep.txt").write_text("mine")
    assert run_here("convert a b --format megatron-core --tp 2 --force --quiet") == 0
    assert mpeval.open_checkpoint("b").digest() == mpeval.open_checkpoint("a").digest()
    assert mpeval.open_checkpoint("b").grid == (2, 1)
    assert sorted(item.name for item in Path("b").iterdir()) == [
        "iter_0000003",
        "iter_0000005",
        "keep.txt",
        "latest_checkpointed_iteration.txt",
    ]


def test_a_release_stays_a_release(capsys: Output) -> None:
    make("a")
    Path("a/iter_0000001").rename("a/release")
    Path("a/latest_checkpointed_iteration.txt").write_text("release")
    assert run_here("convert a b --format megatron --quiet") == 0
    assert Path("b/latest_checkpointed_iteration.txt").read_text() == "release"
    assert mpeval.open_checkpoint("b").release


def test_what_another_format_computes_differently_is_said(capsys: Output) -> None:
    make("a", "bert")
    edit_shard(shard_file(Path("a")), lambda content: setattr(content["args"], "bias_gelu_fusion", True))
    assert run_here("convert a b --format huggingface") == 0
    assert "note: transformers has one activation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**TODAY, "rope_percent": 0.5}, "whole, not interleaved rotations"),
        ({**TODAY, "norm": "layernorm"}, "rotary positions, RMSNorm and SwiGLU"),
        ({**BERT, "lm_head": False}, "another set of heads than pooler + binary_head"),
    ],
)
def test_a_model_that_transformers_lacks_is_refused(changes: dict[str, Any], said: str, capsys: Output) -> None:
    if changes.get("family") == "bert":
        changes = {**changes, "binary_head": True, "multichoice_head": True}
        said = "another set of heads than pooler + binary_head + multichoice_head"
    make_checkpoint(Path("a"), config=small_config(**changes), tokenizer=False)
    assert run_here("convert a b --format huggingface") == 1
    error = capsys.readouterr().err
    assert "no Hugging Face model computes this one" in error
    assert said in error
    assert "keep a Megatron format" in error
    assert not Path("b").exists()


@pytest.mark.parametrize("format", ["megatron-core", "torch_dist"])
def test_an_order_that_megatron_core_ignores_is_neither_written_nor_read(format: str, capsys: Output) -> None:
    make("a", "bert post norm", naming="megatron")
    assert run_here(f"convert a b --format {format}") == 1
    assert "`--format megatron`" in capsys.readouterr().err
    make("c", "bert")
    edit_shard(
        shard_file(Path("c")),
        lambda content: setattr(content["args"], "apply_residual_connection_post_layernorm", True),
    )
    assert run_here("inspect c") == 1
    assert "`--set post_norm=false` (what Megatron-core computes)" in capsys.readouterr().err
    assert run_here("inspect c --set post_norm=false") == 0


def test_a_kill_at_any_time_leaves_no_checkpoint_behind() -> None:
    config = small_config(hidden=256, ffn=1024, layers=12)
    make_checkpoint(Path("a"), config=config, tokenizer=False)
    line = [sys.executable, "-m", "mpeval", "convert", "a", "b", "--format", "megatron-core", "--tp", "2", "--quiet"]
    for delay in (0.0, 0.02, 0.05, 0.1):
        shutil.rmtree("b", ignore_errors=True)
        process = subprocess.Popen(line)
        while not Path("b").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if Path("b/latest_checkpointed_iteration.txt").exists():
            assert mpeval.open_checkpoint("b").digest() == mpeval.open_checkpoint("a").digest()
        else:
            with pytest.raises(mpeval.MpevalError):
                mpeval.open_checkpoint("b")
    Path("b/latest_checkpointed_iteration.txt").unlink(missing_ok=True)
    shutil.rmtree("b/iter_0000001", ignore_errors=True)
    assert run_here("convert a b --format megatron-core --tp 2 --quiet") == 0
    assert mpeval.open_checkpoint("b").digest() == mpeval.open_checkpoint("a").digest()


def test_a_disk_that_writes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    from mpeval.checkpoint import torchzip

    make("a")
    true = torchzip.bytes_of

    def faulty(planned: torchzip.Planned) -> Iterator[memoryview]:
        data = bytearray(b"".join(true(planned)))
        data[-1] ^= 64
        yield memoryview(bytes(data))

    monkeypatch.setattr(torchzip, "bytes_of", faulty)
    assert run_here("convert a b --format megatron-core") == 1
    assert "differs from the source in 27 tensors" in capsys.readouterr().err
    assert not Path("b/latest_checkpointed_iteration.txt").exists()
    assert list(Path("b").glob("*")) == []


def test_the_files_written_are_those_that_torch_reads() -> None:
    make("a", "today", tp=2)
    path = shard_file(Path("a"))
    plain, mapped = torch.load(path, weights_only=False), torch.load(path, weights_only=False, mmap=True)
    opened = mpeval.open_checkpoint("a")
    assert set(plain["model"]) == set(mapped["model"])
    for content in (plain, mapped):
        table = content["model"]["embedding.word_embeddings.weight"]
        assert torch.equal(table, opened.tensor("embedding.word.weight")[:256])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_verify_finds_nothing_wrong_with_a_sound_checkpoint(capsys: Output) -> None:
    make("a", tp=2, pp=2)
    assert run_here("verify a --json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["problems"] == []
    assert content["tied_copies"] == 1
    assert content["replicas"] == sum(len(tensor.copies) for tensor in mpeval.open_checkpoint("a").tensors.values()) > 0
    assert content["digest"] == mpeval.open_checkpoint("a").digest()


def spoil(root: str, name: str, change: Callable[[torch.Tensor], object], shard: str = "mp_rank_00") -> None:
    edit_shard(shard_file(Path(root), shard), lambda content: change(content["model"][name]))


def test_verify_names_every_problem(capsys: Output) -> None:
    make("a", tp=2, pp=2)
    spoil("a", "decoder.layers.0.input_layernorm.weight", lambda w: w.add_(1), "mp_rank_01_000")
    spoil("a", "output_layer.weight", lambda w: w[0].mul_(2), "mp_rank_00_001")
    spoil("a", "decoder.layers.0.mlp.linear_fc1.weight", lambda w: w[0, :2].fill_(float("inf")), "mp_rank_01_001")
    assert run_here("verify a") == 1
    printed = capsys.readouterr()
    wrong = [line for line in printed.out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 3
    assert "layers.0.attention_norm.weight is stored in copies that differ by up to 1" in wrong[0]
    assert "the tied output layer is stored in copies" in wrong[1]
    assert "`layers.1.mlp.up.weight` holds 2 values that are NaN or infinite" in wrong[2]
    assert "`a/iter_0000001` has 3 problems" in printed.err


def test_diff_compares_whatever_the_layouts(capsys: Output) -> None:
    make("a", tp=2)
    make("b", pp=2)
    assert run_here("diff a b") == 0
    spoil("a", "decoder.layers.1.mlp.linear_fc2.bias", lambda w: w[3].add_(0.5), "mp_rank_00")
    spoil("a", "decoder.layers.1.mlp.linear_fc2.bias", lambda w: w[3].add_(0.5), "mp_rank_01")
    capsys.readouterr()
    assert run_here("diff a b --json") == 1
    content = json.loads(capsys.readouterr().out)
    different = [item for item in content["tensors"] if item["verdict"] != "equal"]
    assert [(item["name"], item["verdict"]) for item in different] == [("layers.1.mlp.down.bias", "differs")]
    assert different[0]["gap"] == pytest.approx(0.5)
    assert content["settings"] == []


def test_diff_of_unlike_models_names_what_is_only_in_one(capsys: Output) -> None:
    make("a")
    make("b", "gpt untied")
    assert run_here("convert b c --format megatron --dtype bfloat16 --quiet") == 0
    assert run_here("diff a b --json") == 1
    content = json.loads(capsys.readouterr().out)
    verdicts = {item["name"]: item["verdict"] for item in content["tensors"]}
    assert verdicts["head.weight"] == "only in B"
    assert content["settings"] == [{"name": "tied", "a": "True", "b": "False"}]
    assert run_here("diff b c") == 1
    assert "differs" in capsys.readouterr().out


def test_inspect_lists_every_tensor_with_what_is_in_it(capsys: Output) -> None:
    make("a", tp=2)
    spoil("a", "decoder.final_layernorm.bias", lambda w: w[:3].fill_(float("nan")))
    assert run_here("inspect a --tensors --json") == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    opened = mpeval.open_checkpoint("a")
    assert list(found) == list(opened.tensors)
    for name, item in found.items():
        values = opened.tensor(name)[:].double()
        assert item["norm"] == pytest.approx(values[values.isfinite()].norm().item(), rel=1e-9)
        assert item["not_finite"] == (3 if name == "final_norm.bias" else 0)
        assert item["shape"] == list(opened.tensor(name).shape)
    assert run_here("inspect a --tensors") == 0
    assert "1 of 28 tensors hold NaN or infinity" in capsys.readouterr().out


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch executed",)


def test_scan_marks_the_hostile_and_fails(capsys: Output) -> None:
    make("a", tp=2)
    with zipfile.ZipFile(shard_file(Path("a")), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": {}, "args": Hostile()}, protocol=2))
    assert run_here("inspect a --scan") == 1
    printed = capsys.readouterr()
    [line] = [line for line in printed.out.splitlines() if "HOSTILE" in line]
    assert "posix.system" in line
    assert "mp_rank_00/model_optim_rng.pt" in line
    assert "argparse.Namespace" in printed.out
    assert "1 of 2 pickles name what no checkpoint needs: `posix.system`" in printed.err
    assert not Path("executed").exists()


def test_scan_of_a_clean_checkpoint_of_every_format_passes(capsys: Output) -> None:
    make("a")
    assert run_here("convert a b --format torch_dist --quiet") == 0
    for folder in ("a", "b"):
        assert run_here(f"inspect {folder} --scan --json") == 0
        scans = json.loads(capsys.readouterr().out)
        assert scans
        assert all(scan["hostile"] == [] and scan["failure"] is None for scan in scans)


def test_a_file_that_lost_its_version_can_be_told_it(capsys: Output) -> None:
    make("a", naming="megatron")
    edit_shard(shard_file(Path("a")), lambda content: content.pop("checkpoint_version"))
    wrong = mpeval.open_checkpoint("a").digest()
    right = mpeval.open_checkpoint("a", {"checkpoint_version": 3.0}).digest()
    assert wrong != right
    assert run_here("inspect a --json --set checkpoint_version=3.0") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == right
