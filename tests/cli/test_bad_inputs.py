"""Every mistake a user can make ends in one error line, a hint and an exit code: no traceback, no half result."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    ROWS,
    edit_shard,
    make_checkpoint,
    make_data,
    make_data_lines,
    run_apart,
    run_here,
    shard_file,
    small_config,
    tokenizer_json,
)

TRACKER = "latest_checkpointed_iteration.txt"
DATA = "--task lambada --data data --allow-modified-data"
EVALUATE = f"evaluate tp1 {DATA}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One mistake: how the scene is spoilt, the command, and what must be said about it."""

    name: str
    command: str
    error: str
    hint: str
    spoil: Callable[[], object] = lambda: None
    code: int = 1


def in_model(root: str, name: str, change: Callable[[torch.Tensor], None], shard: str = "mp_rank_00") -> None:
    """Alter one stored tensor of one shard in place."""
    edit_shard(shard_file(Path(root), shard), lambda content: change(content["model"][name]))


def in_args(**values: Any) -> Callable[[], None]:
    """Return what sets arguments of the checkpoint `tp1`."""
    return lambda: edit_shard(shard_file(Path("tp1")), lambda content: vars(content["args"]).update(values))


def in_content(**values: Any) -> Callable[[], None]:
    """Return what sets top-level entries of the checkpoint `tp1`."""
    return lambda: edit_shard(shard_file(Path("tp1")), lambda content: content.update(values))


def in_state(**values: torch.Tensor | None) -> Callable[[], None]:
    """Return what sets (or with None removes) tensors of `tp1`; `__` in a name stands for a dot."""

    def change(content: dict[str, Any]) -> None:
        for name, value in values.items():
            content["model"].pop(name.replace("__", "."), None)
            if value is not None:
                content["model"][name.replace("__", ".")] = value

    return lambda: edit_shard(shard_file(Path("tp1")), change)


def second_iteration_no_tracker() -> None:
    shutil.copytree("tp1/iter_0000001", "tp1/iter_0000020")
    Path("tp1", TRACKER).unlink()


def truncated() -> None:
    path = shard_file(Path("tp1"))
    os.truncate(path, path.stat().st_size // 2)


class Hostile:
    """Pickles to a call of os.system that would leave a file behind."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch executed",)


def hostile() -> None:
    path = shard_file(Path("tp1"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": {}, "args": Hostile()}, protocol=2))


def other_zip() -> None:
    with zipfile.ZipFile(shard_file(Path("tp1")), "w") as archive:
        archive.writestr("notes.txt", "nothing of torch's")


def other_run() -> None:
    run_here(f"{EVALUATE} --output out --quiet")


def damaged_samples() -> None:
    other_run()
    path = Path("out/samples.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{half a line\n", *lines[1:]]))


def changed_record() -> None:
    run_here(f"{EVALUATE} --record store.jsonl --quiet")
    path = Path("store.jsonl")
    record = json.loads(path.read_text())
    record["metric"]["value"] = 0.99
    path.write_text(json.dumps(record) + "\n")


def bert(**changes: Any) -> Callable[[], None]:
    """Return what makes `tp1` a BERT, with a GPT's tokenizer beside it."""

    def make() -> None:
        shutil.rmtree("tp1")
        config = small_config(**({"family": "bert", "tokentypes": 2, "lm_head": True} | changes))
        make_checkpoint(Path("tp1"), config=config)

    return make


def folder_of_theirs(kind: str, weights: str | None) -> Callable[[], None]:
    """Return what makes a Hugging Face folder of nothing but these."""

    def make() -> None:
        Path("theirs").mkdir()
        Path("theirs/config.json").write_text(json.dumps({"model_type": kind}))
        if weights is not None:
            Path("theirs/model.safetensors").write_text(weights)

    return make


def hugging_face() -> None:
    run_here("convert tp1 theirs --format huggingface --quiet")


def data_lines(*lines: str) -> Callable[[], object]:
    return lambda: make_data_lines(Path("data"), lines)


def write(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def remove(path: str) -> Callable[[], object]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def good_lines() -> list[str]:
    return [json.dumps({"text": row}) for row in ROWS]


PATHS = [
    Row(
        name="missing path",
        command=f"evaluate tpp1 {DATA}",
        error="no such checkpoint: `tpp1` does not exist",
        hint="did you mean `tp1`?",
    ),
    Row(
        name="missing path unlike any",
        command="inspect elsewhere",
        error="no such checkpoint: `elsewhere`",
        hint="`data`, `pp2`, `tp1`, `tp2`",
    ),
    Row(
        name="missing tracker",
        command=EVALUATE,
        spoil=second_iteration_no_tracker,
        error=f"no checkpoint under `tp1`: `{TRACKER}` is missing",
        hint="found `iter_0000001`, `iter_0000020`; pass one of them, e.g. `mpeval inspect tp1/iter_0000020`",
    ),
    Row(
        name="tracker naming an absent iteration",
        command=EVALUATE,
        spoil=write(f"tp1/{TRACKER}", "9"),
        error="names `iter_0000009`, which is not in `tp1`",
        hint="found `iter_0000001`",
    ),
    Row(
        name="tracker with rubbish",
        command=EVALUATE,
        spoil=write(f"tp1/{TRACKER}", "banana"),
        error="holds `banana`, neither a number nor `release`",
        hint="found `iter_0000001`",
    ),
    Row(
        name="missing shard",
        command=f"evaluate tp2 {DATA}",
        spoil=remove("tp2/iter_0000001/mp_rank_01"),
        error="lacks 1 of 2 shards: `mp_rank_01`",
        hint="found: `mp_rank_00`; copy the missing ones here",
    ),
    Row(
        name="missing pipeline stage",
        command=f"evaluate pp2 {DATA}",
        spoil=remove("pp2/iter_0000001/mp_rank_00_001"),
        error="lacks 1 of 2 shards: `mp_rank_00_001`",
        hint="found: `mp_rank_00_000`",
    ),
    Row(
        name="surplus shard",
        command=EVALUATE,
        spoil=lambda: shutil.copytree("tp1/iter_0000001/mp_rank_00", "tp1/iter_0000001/mp_rank_01"),
        error="holds 2 x 1 shards, its arguments say 1 x 1",
        hint="files of two checkpoints are mixed in one folder",
    ),
    Row(
        name="rank folder without its file",
        command=EVALUATE,
        spoil=remove("tp1/iter_0000001/mp_rank_00/model_optim_rng.pt"),
        error="no shards under `tp1/iter_0000001`: expected `mp_rank_00/model_optim_rng.pt`",
        hint="mp_rank_00",
    ),
    Row(
        name="some other file",
        command="inspect tp1/tokenizer.json",
        error="`tp1/tokenizer.json` is a file, not a checkpoint folder",
        hint="pass the folder above `model_optim_rng.pt`",
    ),
    Row(
        name="folder without a checkpoint",
        command="inspect data",
        error="no checkpoint under `data`",
        hint="`data` holds: `lambada`",
    ),
    Row(
        name="torch_dist index of another kind",
        command=EVALUATE,
        spoil=write("tp1/iter_0000001/.metadata", "x"),
        error="`tp1/iter_0000001/.metadata` cannot be decoded",
        hint="the file is damaged",
    ),
    Row(
        name="torch_dist without its index",
        command=EVALUATE,
        spoil=write("tp1/iter_0000001/metadata.json", '{"sharded_backend": "torch_dist"}'),
        error="is a torch_dist checkpoint without its `.metadata`",
        hint="found: `metadata.json`",
    ),
    Row(
        name="distributed checkpoint of another format",
        command=EVALUATE,
        spoil=write("tp1/iter_0000001/metadata.json", '{"sharded_backend": "zarr"}'),
        error="is a distributed checkpoint of format `zarr`, which this version does not read",
        hint="`torch_dist` is read",
    ),
    Row(
        name="hugging face model of another type",
        command="inspect theirs",
        spoil=folder_of_theirs("vit", ""),
        error="describes a model of type `vit`, which this version does not read",
        hint="`gpt2`",
    ),
    Row(
        name="hugging face folder without weights",
        command="inspect theirs",
        spoil=folder_of_theirs("gpt2", None),
        error="`theirs` has no `model.safetensors` and no `pytorch_model.bin`",
        hint="found: `config.json`",
    ),
    Row(
        name="hugging face weights cut off",
        command="inspect theirs",
        spoil=folder_of_theirs("gpt2", "x"),
        error="`theirs/model.safetensors` is truncated, or no safetensors file",
        hint="copy the file again",
    ),
    Row(
        name="expert-parallel folder names",
        command=f"evaluate pp2 {DATA}",
        spoil=lambda: Path("pp2/iter_0000001/mp_rank_00_000").rename("pp2/iter_0000001/mp_rank_00_000_000"),
        error="`mp_rank_00_000_000` in `pp2/iter_0000001` belongs to an expert-parallel checkpoint",
        hint="mixture-of-experts models are not supported",
    ),
]

FILES = [
    Row(
        name="truncated shard file",
        command=EVALUATE,
        spoil=truncated,
        error="mp_rank_00/model_optim_rng.pt` is truncated",
        hint="copy the file again and compare sizes",
    ),
    Row(
        name="empty shard file",
        command=EVALUATE,
        spoil=lambda: os.truncate(shard_file(Path("tp1")), 0),
        error="is no torch checkpoint: its 0 bytes",
        hint="the file is empty, damaged or of another kind",
    ),
    Row(
        name="non-torch file",
        command=EVALUATE,
        spoil=lambda: shard_file(Path("tp1")).write_text("version https://git-lfs.github.com/spec/v1\n"),
        error="is no torch checkpoint",
        hint="copy it again and compare sizes",
    ),
    Row(
        name="zip of something else",
        command=EVALUATE,
        spoil=other_zip,
        error="is a zip file but no torch checkpoint",
        hint="found instead: notes.txt",
    ),
    Row(
        name="hostile pickle",
        command=EVALUATE,
        spoil=hostile,
        error="is refused: its pickle names `posix.system`",
        hint="nothing was executed",
    ),
    Row(
        name="file that holds a list",
        command=EVALUATE,
        spoil=lambda: torch.save([1, 2], shard_file(Path("tp1"))),
        error="holds no dictionary, so no Megatron checkpoint",
        hint="",
    ),
    Row(
        name="no model entry",
        command=EVALUATE,
        spoil=lambda: torch.save({"state_dict": {}}, shard_file(Path("tp1"))),
        error="has no `model` entry",
        hint="found: `state_dict`",
    ),
    Row(
        name="shards of two iterations",
        command=f"evaluate tp2 {DATA}",
        spoil=lambda: edit_shard(
            shard_file(Path("tp2"), "mp_rank_01"), lambda content: content.update({"iteration": 9})
        ),
        error="is of iteration 9 and version 3, `mp_rank_00/model_optim_rng.pt` of 1 and 3",
        hint="files of two checkpoints are mixed",
    ),
    Row(
        name="model that contains itself",
        command=EVALUATE,
        spoil=lambda: edit_shard(
            shard_file(Path("tp1")), lambda content: content["model"].update({"model": content["model"]})
        ),
        error="holds a model that contains itself",
        hint="copy the file again",
    ),
]

MODELS = [
    Row(
        name="ranks that do not divide the heads",
        command=f"{EVALUATE} --tp 3",
        error="tensor-parallel size 3 does not divide the model's heads 4",
        hint="sizes that fit: 1, 2, 4",
    ),
    Row(
        name="NaN weights",
        command=EVALUATE,
        spoil=lambda: in_model("tp1", "decoder.layers.1.mlp.linear_fc2.weight", lambda w: w[3, 4:6].fill_(torch.nan)),
        error="`layers.1.mlp.down.weight` holds 2 values that are NaN or infinite in float32",
        hint="use another iteration",
    ),
    Row(
        name="weights too large for float16",
        command=f"{EVALUATE} --dtype float16",
        spoil=lambda: in_model("tp1", "decoder.layers.0.mlp.linear_fc1.weight", lambda w: w[0, 0].fill_(1e6)),
        error="`layers.0.mlp.up.weight` holds 1 values that are NaN or infinite in float16",
        hint="or `--dtype float32`",
    ),
    Row(
        name="activations that overflow",
        command=f"{EVALUATE} --dtype float16",
        spoil=lambda: in_model("tp1", "decoder.layers.0.mlp.linear_fc2.weight", lambda w: w.fill_(6e4)),
        error="a log-probability that is not finite",
        hint="use `--dtype float32` or `--dtype bfloat16`",
    ),
    Row(
        name="tied copies that differ",
        command=f"evaluate pp2 {DATA}",
        spoil=lambda: in_model("pp2", "output_layer.weight", lambda w: w[5, 5].add_(0.5), shard="mp_rank_00_001"),
        error="the tied output layer is stored in copies that differ by up to 0.5",
        hint="use another iteration",
    ),
    Row(
        name="replicated norm that differs across ranks",
        command=f"evaluate tp2 {DATA}",
        spoil=lambda: in_model(
            "tp2", "decoder.layers.1.input_layernorm.weight", lambda w: w[0].add_(0.25), shard="mp_rank_01"
        ),
        error="layers.1.attention_norm.weight is stored in copies that differ by up to 0.25",
        hint="use another iteration",
    ),
    Row(
        name="replicated norm that differs, inspected",
        command="inspect tp2",
        spoil=lambda: in_model(
            "tp2", "decoder.layers.1.input_layernorm.weight", lambda w: w[0].add_(0.25), shard="mp_rank_01"
        ),
        error="is stored in copies that differ by up to 0.25",
        hint="use another iteration",
    ),
    Row(
        name="checkpoint version never written",
        command=EVALUATE,
        spoil=in_content(checkpoint_version=4.0),
        error="has checkpoint version `4.0`, which Megatron never wrote",
        hint="`--set checkpoint_version=2.0`",
    ),
    Row(
        name="version that is no number",
        command=EVALUATE,
        spoil=in_content(checkpoint_version="three"),
        error="has checkpoint version `three`",
        hint="`--set checkpoint_version=2.0`",
    ),
    Row(
        name="iteration that is no number",
        command=EVALUATE,
        spoil=in_content(iteration="last"),
        error="iteration",
        hint="",
    ),
    Row(
        name="no args and no heads given",
        command=EVALUATE,
        spoil=in_content(args=None),
        error="does not say the model's `heads`",
        hint="give it: `--set heads=1` or `--set heads=2`",
    ),
    Row(
        name="no args and no GELU given",
        command=f"{EVALUATE} --set heads=4",
        spoil=in_content(args=None),
        error="does not say the model's `gelu`",
        hint="`--set gelu=tanh` or `--set gelu=erf`",
    ),
    Row(
        name="SwiGLU only in the arguments",
        command=EVALUATE,
        spoil=in_args(swiglu=True),
        error="does not hold the model its arguments describe: missing `layers.0.mlp.gate.weight`",
        hint="belongs to another model",
    ),
    Row(
        name="mixture of experts",
        command=EVALUATE,
        spoil=in_args(num_experts=8),
        error="holds a model with mixture of experts (`num_experts` is `8`), which this version cannot compute",
        hint="supported: GPT and BERT",
    ),
    Row(
        name="multi-latent attention",
        command=EVALUATE,
        spoil=in_args(multi_latent_attention=True),
        error="holds a model with multi-latent attention",
        hint="supported: GPT and BERT",
    ),
    Row(
        name="state-space layers",
        command=EVALUATE,
        spoil=in_state(decoder__layers__0__mixer__in_proj__weight=torch.zeros(4, 32)),
        error="holds a model with state-space layers (tensor `decoder.layers.0.mixer.in_proj.weight`)",
        hint="supported: GPT and BERT",
    ),
    Row(
        name="positions neither learned nor rotary",
        command=EVALUATE,
        spoil=in_args(position_embedding_type="alibi"),
        error="(`position_embedding_type` is `alibi`)",
        hint="supported: GPT and BERT",
    ),
    Row(
        name="grouped queries only in the arguments",
        command=EVALUATE,
        spoil=in_args(group_query_attention=True, num_query_groups=2),
        error="tensor `layers.0.attention.qkv.weight` has shape [96, 32], the configuration says [64, 32]",
        hint="belongs to another model",
    ),
    Row(
        name="layers without number",
        command=EVALUATE,
        spoil=in_args(num_layers=10**12),
        error="says it has 1000000000000 layers",
        hint="belongs to another model",
    ),
    Row(
        name="BERT",
        command=EVALUATE,
        spoil=bert(),
        code=2,
        error="`lambada/megatron-strict` scores a GPT, `tp1` holds a BERT",
        hint="for a BERT there is `--task mnli/megatron`, ",
    ),
    Row(
        name="all of a task that has nothing for a BERT",
        command=EVALUATE.replace("lambada", "lambada/all"),
        spoil=bert(),
        code=2,
        error="`lambada/all` scores a GPT, `tp1` holds a BERT",
        hint="for a BERT there is `--task mnli/megatron`, ",
    ),
    Row(
        name="default protocol for a BERT",
        command="evaluate tp1 --task wikitext103/all --task wikitext103",
        spoil=bert(),
        code=2,
        error="`wikitext103/megatron` scores a GPT, `tp1` holds a BERT",
        hint="for a BERT there is `--task wikitext103/masked`",
    ),
    Row(
        name="protocol of a BERT for a GPT",
        command="evaluate tp1 --task wikitext103/masked",
        code=2,
        error="`wikitext103/masked` scores a BERT, `tp1` holds a GPT",
        hint="for a GPT there is `--task wikitext103/megatron`, `--task wikitext103/disjoint`",
    ),
    Row(
        name="BERT without its head",
        command="evaluate tp1 --task wikitext103/masked",
        spoil=bert(lm_head=False),
        error="`tp1` holds a BERT without a masked language model head, so it predicts no token",
        hint="evaluate the checkpoint it was made from",
    ),
    Row(
        name="BERT with a GPT's tokenizer",
        command="evaluate tp1 --task wikitext103/masked --data data --allow-modified-data",
        spoil=lambda: (bert()(), Path("data/wiki.test.tokens").write_text(" some words \n")),
        error="the tokenizer in `tp1` has no `[UNK]` token",
        hint="a BERT's has [CLS], [SEP], [MASK] and [PAD]",
    ),
    Row(
        name="tensor of a mixture of experts",
        command=EVALUATE,
        spoil=in_state(decoder__layers__0__mlp__router__weight=torch.zeros(4, 32)),
        error="holds a model with mixture of experts (tensor `decoder.layers.0.mlp.router.weight`)",
        hint="supported: GPT and BERT",
    ),
    Row(
        name="tensor no GPT has",
        command=EVALUATE,
        spoil=in_state(decoder__layers__0__mlp__extra__weight=torch.zeros(4, 32)),
        error="holds a tensor that no GPT or BERT has: `decoder.layers.0.mlp.extra.weight`",
        hint="it is of another kind of model",
    ),
    Row(
        name="tensor missing",
        command=EVALUATE,
        spoil=in_state(decoder__layers__1__mlp__linear_fc2__bias=None),
        error="missing `layers.1.mlp.down.bias`",
        hint="",
    ),
    Row(
        name="token table missing",
        command=EVALUATE,
        spoil=in_state(embedding__word_embeddings__weight=None),
        error="has no tensor `embedding.word.weight`",
        hint="it is incomplete, or no GPT or BERT",
    ),
    Row(
        name="token table of one dimension",
        command=EVALUATE,
        spoil=in_state(embedding__word_embeddings__weight=torch.zeros(512)),
        error="embedding.word.weight",
        hint="",
    ),
    Row(
        name="token table of whole numbers",
        command=EVALUATE,
        spoil=in_state(embedding__word_embeddings__weight=torch.zeros(512, 32, dtype=torch.int64)),
        error="int64",
        hint="",
    ),
    Row(
        name="tensor of another shape",
        command=EVALUATE,
        spoil=in_state(decoder__layers__1__mlp__linear_fc2__bias=torch.zeros(16)),
        error="tensor `layers.1.mlp.down.bias` has shape [16], the configuration says [32]",
        hint="`--set` value is wrong",
    ),
    Row(
        name="no tensors at all",
        command=EVALUATE,
        spoil=in_content(model={}),
        error="holds no GPT or BERT that this version knows",
        hint="tensors found: none",
    ),
    Row(
        name="layers that are words",
        command=EVALUATE,
        spoil=in_args(num_layers="two"),
        error="num_layers",
        hint="",
    ),
    Row(
        name="grid in args that is a word",
        command=EVALUATE,
        spoil=in_args(tensor_model_parallel_size="one"),
        error="tensor_model_parallel_size",
        hint="",
    ),
    Row(
        name="too many heads set",
        command=f"{EVALUATE} --set heads=5",
        error="hidden size 32 is not divisible by 5 heads",
        hint="by `--set heads=N`",
    ),
    Row(
        name="vocabulary larger than its table",
        command=f"{EVALUATE} --set vocab=600",
        error="vocabulary 600 is larger than its table of 512 rows",
        hint="",
    ),
    Row(
        name="unknown setting",
        command=f"{EVALUATE} --set hedas=4",
        error="`--set hedas=4`",
        hint="did you mean `heads`?",
    ),
    Row(
        name="setting of another type",
        command=f"{EVALUATE} --set heads=many",
        error="`--set heads=many`: `many` is not a",
        hint="",
    ),
    Row(
        name="setting without effect",
        command=f"{EVALUATE} --set rope_base=5000",
        error="`--set rope_base` has no effect on the model in `tp1/iter_0000001`",
        hint="such as `rope=true` for `rope_base`",
    ),
    Row(
        name="unknown GELU",
        command=f"{EVALUATE} --set gelu=fast",
        error="unknown `gelu`: `fast`",
        hint="known: `erf`, `tanh`",
    ),
]

CONVERSIONS = [
    Row(
        name="unknown format",
        command="convert tp1 out --format hugingface",
        code=2,
        error="`--format hugingface` is unknown",
        hint="did you mean `huggingface`?",
    ),
    Row(
        name="stages that do not divide the layers",
        command="convert tp1 out --format megatron-core --pp 3",
        code=2,
        error="`--pp 3` does not divide the model's 2 layers",
        hint="sizes that fit: 1, 2",
    ),
    Row(
        name="tensor ranks that do not divide the heads",
        command="convert tp1 out --format megatron --tp 8",
        error="tensor-parallel size 8 does not divide the model's heads 4",
        hint="sizes that fit: 1, 2, 4",
    ),
    Row(
        name="ranks for a folder that has none",
        command="convert tp1 out --format huggingface --tp 2",
        code=2,
        error="a Hugging Face folder has no ranks",
        hint="leave out `--tp` and `--pp`",
    ),
    Row(
        name="vocabulary larger than what is stored",
        command="convert tp1 out --format huggingface --vocab-size 600",
        code=2,
        error="`--vocab-size 600` does not fit a table of 512 rows",
        hint="give the tokenizer's size",
    ),
    Row(
        name="target that is the source",
        command="convert tp1 tp1 --format megatron --force",
        error="`tp1` is the source itself",
        hint="give another folder",
    ),
    Row(
        name="target that holds something",
        command="convert tp1 tp2 --format megatron",
        error="`tp2` is not empty",
        hint="`--force` to replace the checkpoint in it",
    ),
    Row(
        name="target that holds no checkpoint",
        command="convert tp1 data --format megatron --force",
        error="`data` holds nothing that `--force` replaces",
        hint="`data` holds: `lambada`",
    ),
    Row(
        name="target of another kind",
        command="convert tp2 theirs --format megatron --force",
        spoil=hugging_face,
        error="`theirs` holds a checkpoint of another kind: huggingface",
        hint="remove it, or give a new folder",
    ),
    Row(
        name="target that is a file",
        command="convert tp1 data/lambada/lambada_test.jsonl --format megatron",
        error="`data/lambada/lambada_test.jsonl` is a file",
        hint="give a folder",
    ),
    Row(
        name="conversion of copies that differ",
        command="convert tp2 out --format megatron",
        spoil=lambda: in_model("tp2", "decoder.final_layernorm.weight", lambda w: w.add_(1), "mp_rank_01"),
        error="final_norm.weight is stored in copies that differ by up to 1",
        hint="use another iteration",
    ),
    Row(
        name="scan of nothing",
        command="inspect data --scan",
        error="`data` holds no file that could be a pickle",
        hint="safetensors hold no code",
    ),
    Row(
        name="scan and tensors at once",
        command="inspect tp1 --scan --tensors",
        code=2,
        error="`--scan` opens no tensor",
        hint="run the command twice",
    ),
]

TOKENIZERS = [
    Row(
        name="vocabulary of another size",
        command=EVALUATE,
        spoil=lambda: Path("tp1/tokenizer.json").write_text(tokenizer_json(390)),
        error="has 390 tokens, the checkpoint 400 tokens",
        hint="give the one it was trained with by `--tokenizer DIR`, or `--set vocab=390`",
    ),
    Row(
        name="vocabulary larger than the table",
        command=EVALUATE,
        spoil=in_state(
            embedding__word_embeddings__weight=torch.zeros(384, 32),
        ),
        error="vocabulary 400 is larger than its table of 384 rows",
        hint="",
    ),
    Row(
        name="no tokenizer",
        command=EVALUATE,
        spoil=remove("tp1/tokenizer.json"),
        error="no tokenizer in `tp1`",
        hint="give `--tokenizer DIR`, a folder with `tokenizer.json`",
    ),
    Row(
        name="tokenizer path that is not there",
        command=f"{EVALUATE} --tokenizer nowhere",
        error="no such tokenizer: `nowhere` does not exist",
        hint="pass a folder with `tokenizer.json`",
    ),
    Row(
        name="broken tokenizer.json",
        command=EVALUATE,
        spoil=write("tp1/tokenizer.json", '{"model": '),
        error="the tokenizer in `tp1/tokenizer.json` cannot be read",
        hint="copy its files again",
    ),
]

BENCHMARKS = [
    Row(
        name="wrong data file",
        command="evaluate tp1 --task lambada --data data",
        error="is not the published LAMBADA test set: 12 rows with sha256",
        hint="--allow-modified-data, which marks the result",
    ),
    Row(
        name="data folder missing",
        command="evaluate tp1 --task lambada --data datta",
        error="no such data folder: `datta` does not exist",
        hint="it should hold `lambada/lambada_test.jsonl`",
    ),
    Row(
        name="data file missing in folder",
        command="evaluate tp1 --task wikitext103 --data data",
        error="no WikiText-103 data in `data`: expected `wikitext-103/wiki.test.tokens`",
        hint="found: `lambada`",
    ),
    Row(
        name="data that is another file",
        command="evaluate tp1 --task lambada --data tp1/tokenizer.json",
        error="`tp1/tokenizer.json` is not a folder",
        hint="it should hold `lambada/lambada_test.jsonl`",
    ),
    Row(name="empty data", command=EVALUATE, spoil=data_lines(), error="is empty", hint="get the published file"),
    Row(
        name="blank data",
        command=EVALUATE,
        spoil=data_lines("", " "),
        error="is empty",
        hint="get the published file again",
    ),
    Row(
        name="malformed JSON line",
        command=EVALUATE,
        spoil=lambda: make_data_lines(Path("data"), [*good_lines()[:2], '{"text": "half', *good_lines()]),
        error="lambada_test.jsonl` line 3 is not an object with `text`",
        hint='such as {"text": "..."}',
    ),
    Row(
        name="row without the field",
        command=EVALUATE,
        spoil=lambda: make_data_lines(Path("data"), [*good_lines(), '{"passage": "a b"}']),
        error="line 13 is not an object with `text`",
        hint='such as {"text": "..."}',
    ),
    Row(
        name="row with an empty text",
        command=EVALUATE,
        spoil=lambda: make_data_lines(Path("data"), ['{"text": ""}']),
        error="line 1: `text` is empty or no text",
        hint="",
    ),
    Row(
        name="row of one word",
        command=EVALUATE,
        spoil=lambda: make_data(Path("data"), ["alone", *ROWS]),
        error="row 1 leaves no context before its last word",
        hint="'alone'",
    ),
    Row(
        name="data that is not UTF-8",
        command=EVALUATE,
        spoil=lambda: Path("data/lambada/lambada_test.jsonl").write_bytes(b'{"text": "caf\xe9 au lait"}\n'),
        error="is not UTF-8 text",
        hint="get the published file again",
    ),
    Row(
        name="target longer than the context",
        command=EVALUATE,
        spoil=lambda: make_data(Path("data"), ["The answer is " + "qxz" * 60]),
        error="does not fit the model's context of 64",
        hint="a model of longer context",
    ),
    Row(
        name="text too short for perplexity",
        command="evaluate tp1 --task wikitext103 --data data --allow-modified-data",
        spoil=lambda: Path("data/wiki.test.tokens").write_text(" word \n"),
        error="is too short to measure perplexity on",
        hint="",
    ),
]

OPTIONS = [
    Row(
        name="unknown task",
        command="evaluate tp1 --task lambda --data data",
        code=2,
        error="no task `lambda`",
        hint="did you mean `lambada`?",
    ),
    Row(
        name="unknown protocol",
        command="evaluate tp1 --task lambada/megatron-strickt --data data",
        code=2,
        error="task `lambada` has no protocol `megatron-strickt`",
        hint="did you mean `lambada/megatron-strict`?",
    ),
    Row(
        name="unknown dtype",
        command=f"{EVALUATE} --dtype float8",
        code=2,
        error="`--dtype float8` is unknown",
        hint="`float32`",
    ),
    Row(
        name="unknown device",
        command=f"{EVALUATE} --device gpu",
        code=2,
        error="`--device gpu` is unknown",
        hint="`cuda`",
    ),
    Row(
        name="limit of nothing",
        command=f"{EVALUATE} --limit 0",
        code=2,
        error="`--limit 0` leaves nothing to score",
        hint="give 1 or more",
    ),
    Row(
        name="no tensor ranks",
        command=f"{EVALUATE} --tp 0",
        code=2,
        error="`--tp 0` is not a number of ranks",
        hint="give 1 or more",
    ),
    Row(
        name="negative data ranks",
        command=f"{EVALUATE} --dp -1",
        code=2,
        error="`--dp -1` is not a number of ranks",
        hint="give 1 or more",
    ),
    Row(
        name="unknown task shown",
        command="tasks show wikitext",
        code=2,
        error="no task `wikitext`",
        hint="did you mean `wikitext103`?",
    ),
    Row(
        name="check without a tokenizer",
        command="tasks check lambada --data data",
        error="no tokenizer in `.`",
        hint="give `--tokenizer DIR`",
    ),
]

OUTPUTS = [
    Row(
        name="output below a regular file",
        command=f"{EVALUATE} --output tp1/tokenizer.json/out",
        error="cannot write `tp1/tokenizer.json/out`: Not a directory",
        hint="give a folder you may write to by `--output`",
    ),
    Row(
        name="output that is a regular file",
        command=f"{EVALUATE} --output tp1/tokenizer.json",
        error="cannot write `tp1/tokenizer.json`: File exists",
        hint="by `--output`",
    ),
    Row(
        name="output folder of another run",
        command=f"{EVALUATE} --output out --dtype bfloat16",
        spoil=other_run,
        error="`out` belongs to another run: its dtype is `float32`, this run's `bfloat16`",
        hint="give another folder by `--output`",
    ),
    Row(
        name="output folder of other data",
        command=f"{EVALUATE} --output out",
        spoil=lambda: [other_run(), make_data(Path("data"), ROWS[1:])],
        error="`out` belongs to another run: its data of lambada/megatron-strict is",
        hint="give another folder by `--output`",
    ),
    Row(
        name="damaged samples",
        command=f"{EVALUATE} --output out",
        spoil=damaged_samples,
        error="`out/samples.jsonl` line 2 is damaged",
        hint="remove that line, or give another `--output`",
    ),
    Row(
        name="damaged run file",
        command=f"{EVALUATE} --output out",
        spoil=lambda: [other_run(), write("out/run.json", "{")()],
        error="`out/run.json` is damaged",
        hint="give another folder by `--output`",
    ),
    Row(
        name="run file that holds a list",
        command=f"{EVALUATE} --output out",
        spoil=lambda: [other_run(), write("out/run.json", '["dtype"]')()],
        error="`out/run.json` is damaged",
        hint="give another folder by `--output`",
    ),
    Row(
        name="record below a regular file",
        command=f"{EVALUATE} --quiet --record tp1/tokenizer.json/store.jsonl",
        error="cannot write `tp1/tokenizer.json/store.jsonl`",
        hint="--record",
    ),
    Row(
        name="record into a file of something else",
        command=f"{EVALUATE} --quiet --record tp1/tokenizer.json",
        error="`tp1/tokenizer.json` is a file of something else",
        hint="give another file by `--record`",
    ),
    Row(
        name="leaderboard store missing",
        command="leaderboard show --store nothing.jsonl",
        error="no leaderboard at `nothing.jsonl`",
        hint="`mpeval evaluate ... --record FILE` begins one",
    ),
    Row(
        name="leaderboard store missing, published",
        command="leaderboard publish --store nothing.jsonl --output pages",
        error="no leaderboard at `nothing.jsonl`",
        hint="begins one",
    ),
    Row(
        name="leaderboard line changed after writing",
        command="leaderboard show --store store.jsonl",
        spoil=changed_record,
        error="`store.jsonl` line 1 was changed after it was written",
        hint="restore the line, or remove it",
    ),
    Row(
        name="leaderboard line that is no record",
        command="leaderboard show --store store.jsonl",
        spoil=write("store.jsonl", '{"schema": "mpeval.result/1"}\n'),
        error="`store.jsonl` line 1 is no record",
        hint="restore the line, or remove it",
    ),
    Row(
        name="pages into a regular file",
        command="leaderboard publish --store store.jsonl --output tp1/tokenizer.json",
        spoil=write("store.jsonl", ""),
        error="cannot write `tp1/tokenizer.json/README.md`",
        hint="give a folder you may write to by `--output`",
    ),
]
TABLE = [*PATHS, *FILES, *MODELS, *CONVERSIONS, *TOKENIZERS, *BENCHMARKS, *OPTIONS, *OUTPUTS]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    make_checkpoint(folder / "tp1")
    make_checkpoint(folder / "tp2", tp=2)
    make_checkpoint(folder / "pp2", pp=2)
    make_data(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def scene(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of three good checkpoints and their data, as the working folder."""
    folder = tmp_path / "scene"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(folder)
    return folder


def assert_one_clear_error(row: Row, code: int, out: str, err: str) -> None:
    """Compare everything that a user gets to see with the row."""
    assert "Traceback" not in err
    assert out == ""
    lines = err.splitlines()
    assert row.error in lines[0]
    assert lines[0].startswith("error: ")
    assert lines[0].endswith("...") or not lines[0].endswith(".")
    assert len(lines) == 3, "an error, a blank line and a hint"
    assert lines[1] == ""
    assert lines[2].startswith("hint: ")
    assert row.hint in lines[2]
    assert code == row.code


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_mistake_ends_in_one_error_and_a_hint(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    row.spoil()
    capsys.readouterr()
    code = run_here(row.command)
    captured = capsys.readouterr()
    assert_one_clear_error(row, code, captured.out, captured.err)
    assert not Path("executed").exists()


def test_the_scene_itself_is_faultless(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_here(f"evaluate {name} {DATA} --quiet") for name in ("tp1", "tp2", "pp2")] == [0, 0, 0]
    assert capsys.readouterr().err == ""


def test_what_the_file_has_wrong_can_be_given_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """The hints say so: a value by `--set` wins over the file's, also where the file's is no number."""
    in_args(num_layers="two", num_attention_heads=None)()
    assert run_here("inspect tp1 --json --set layers=2 --set heads=4") == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["layers"] == {"value": 2, "origin": "--set"}
    assert config["heads"] == {"value": 4, "origin": "--set"}


def test_the_table_has_a_row_for_each_kind_of_mistake() -> None:
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))
    assert len(names) >= 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so `--device cuda` is no mistake")
@pytest.mark.parametrize("ranks", ["", " --tp 2"], ids=["one rank", "two ranks"])
def test_asking_for_a_gpu_that_is_not_there_is_one_error(ranks: str) -> None:
    row = Row(
        name="no GPU",
        command=f"{EVALUATE} --device cuda{ranks}",
        code=2,
        error="`--device cuda`: torch sees no GPU here",
        hint="use `--device cpu`",
    )
    run = run_apart(row.command)
    assert_one_clear_error(row, run.returncode, run.stdout, run.stderr)


@pytest.mark.parametrize(
    "name",
    ["missing path", "hostile pickle", "unknown task", "ranks that do not divide the heads"],
)
def test_a_process_of_its_own_says_the_same(name: str) -> None:
    row = next(row for row in TABLE if row.name == name)
    row.spoil()
    run = run_apart(row.command)
    assert_one_clear_error(row, run.returncode, run.stdout, run.stderr)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "name",
    ["NaN weights", "output folder of another run"],
)
def test_a_mistake_found_by_the_ranks_is_said_once(name: str) -> None:
    row = next(row for row in TABLE if row.name == name)
    row.spoil()
    run = run_apart(f"{row.command} --tp 2")
    assert_one_clear_error(row, run.returncode, run.stdout, run.stderr)


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("evaluate tp1 --tsak lambada", "--task"),
        ("evaluate tp1", "--task"),
        (f"{EVALUATE} --tp two", "--tp"),
        (f"{EVALUATE} --batch-tokens 0", "--batch-tokens"),
        ("evalute tp1 --task lambada", "evaluate"),
        ("inspect", "checkpoint"),
    ],
)
def test_a_command_that_cannot_be_parsed_is_a_usage_error(
    command: str, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_here(command)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert fragment in captured.err.splitlines()[-1]
