"""The model `mpeval` of lm-eval's registry: a checkpoint by its path, on the ranks of this run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model

from mpeval import launch
from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.config import DTYPES
from mpeval.errors import UsageError, suggest
from mpeval.harness.model import SEED, LanguageModel
from mpeval.models.gpt import GPT
from mpeval.parallel.group import Group
from mpeval.provenance import check_causal, with_tokenizer

_RANKS: ContextVar[Group | None] = ContextVar("_RANKS", default=None)
KNOWN = ("checkpoint", "tp", "dp", "dtype", "device", "tokenizer", "batch_tokens", "max_gen_toks", "seed")


@contextmanager
def on_ranks(group: Group) -> Iterator[None]:
    """Make models that are created inside belong to `group`."""
    token = _RANKS.set(group)
    try:
        yield
    finally:
        _RANKS.reset(token)


def device_of(name: object) -> str:
    """Return `cpu` or `cuda` for what lm-eval calls a device.

    Its command says `cuda:0` when nobody has said anything, so that is `auto` here.

    Raises:
        UsageError: another one.
    """
    kind = "auto" if name in {None, "cuda:0"} else str(name).partition(":")[0]
    if kind not in {"cpu", "cuda", "auto"}:
        raise UsageError(f"`device={name}` is unknown", "there are `cpu`, `cuda` and `auto`")
    return launch.device_of(kind)


@register_model("mpeval")
class CheckpointModel(LanguageModel):
    """What `--model mpeval --model_args checkpoint=DIR,...` makes."""

    def __init__(
        self,
        checkpoint: str | None = None,
        tp: int | None = None,
        dp: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        tokenizer: str | None = None,
        batch_tokens: int | None = None,
        max_gen_toks: int | None = None,
        seed: int = SEED,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        """Read this rank's shard of a checkpoint.

        Args:
            checkpoint: checkpoint root, iteration folder, or a file inside one.
            tp: tensor-parallel ranks; they are started by `mpeval harness`, torchrun or Slurm, not here.
            dp: data-parallel ranks, likewise.
            dtype: float32, bfloat16 or float16 (default: the file's).
            device: cpu, cuda or auto.
            tokenizer: folder with the tokenizer (default: beside the checkpoint).
            batch_tokens: input tokens per forward pass (default by device).
            max_gen_toks: new tokens where a task does not say how many.
            seed: of random continuations.
            batch_size: lm-eval's; batches are by tokens here, so only what it passes by itself is accepted.
            max_batch_size: likewise.
            unknown: refused.

        Raises:
            MpevalError: an argument that is unknown or missing, or a checkpoint that cannot be used.
        """
        for name, value in unknown.items():
            raise UsageError(f"`--model mpeval` takes no `{name}={value}`", suggest(name, list(KNOWN)))
        if checkpoint is None:
            raise UsageError("`--model mpeval` needs a checkpoint", "add `--model_args checkpoint=DIR`")
        if batch_size not in {None, 1, "1", "auto"} or max_batch_size is not None:
            raise UsageError(
                f"`batch_size={batch_size}`: batches are made by tokens", "give `batch_tokens=N` in `--model_args`"
            )
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"`dtype={dtype}` is unknown", suggest(str(dtype), list(DTYPES)))
        group = _group(tp, dp, device)
        found = open_checkpoint(Path(str(checkpoint)))
        found.config.check_ranks(group.tp.ranks)
        check_causal(found, checkpoint)
        found, text = with_tokenizer(found, None if tokenizer is None else Path(str(tokenizer)), Path(str(checkpoint)))
        model = load_model(found, group, dtype)
        assert isinstance(model, GPT)
        model.prepack()
        super().__init__(model, text, batch_tokens=batch_tokens, max_gen_toks=max_gen_toks, seed=seed)


def _group(tp: int | None, dp: int | None, device: str | None) -> Group:
    """Return the ranks this process is one of.

    Raises:
        UsageError: there are others than asked for.
    """
    group = _RANKS.get()
    if group is None:
        world = launch.world_of(os.environ)
        if (world is not None and world.ranks > 1) or (tp or 1) * (dp or 1) > 1:
            raise UsageError(
                f"`tp={tp or 1},dp={dp or 1}` needs ranks that know one another",
                "start them by `mpeval harness run --model mpeval ...`, with torchrun `-m mpeval harness run ...`",
            )
        return Group.single(device_of(device))
    for name, asked, there in (("tp", tp, group.tp.ranks), ("dp", dp, group.dp.ranks)):
        if asked is not None and asked != there:
            raise UsageError(f"`{name}={asked}` was asked for, this run has {there}", f"give `{name}={there}`")
    return group
