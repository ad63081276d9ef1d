"""Every era, layout and container opens to the model that was stored; every kind of damage is named, none survives.

The checkpoints come from `eras.write`, the expected logits from `eras.dense`; neither knows this package.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eras
import pytest
import torch
from eras import Spec

from mpeval import MpevalError, load_model, open_checkpoint

Pair = tuple[tuple[str, Any], tuple[str, Any]]

VALUES: dict[str, tuple[Any, ...]] = {
    "arch": ("gpt", "llama", "bert", "bert-post"),
    "version": (None, 1.0, 2.0, 3.0),
    "names": ("legacy-2019", "legacy", "legacy-2023", "mcore-local", "mcore-te"),
    "tp": (1, 2, 4),
    "pipeline": (
        (1, 1, None),
        (2, 1, None),
        (2, 2, None),
        (4, 1, None),
        (2, 1, (1, 3)),
        (2, 1, (0, 4)),
        (3, 1, (1, 2, 1)),
    ),
    "tied": (True, False),
    "args": (True, False),
    "gelu": ("tanh", "erf", "openai"),
    "container": ("zip", "pickle"),
    "model_file": ("model_optim_rng.pt", "model_rng.pt"),
    "release": (False, True),
}
"""What a checkpoint can differ in; `pipeline` is stages, virtual chunks of each, and layers of uneven stages."""
GRID = ("arch", "version", "names", "tp")
"""The dimensions of which every possible combination is tested; of the others every possible pair of values."""


def _spec(choice: dict[str, Any]) -> Spec:
    values = dict(choice)
    pp, vpp, stages = values.pop("pipeline")
    return Spec(**values, pp=pp, vpp=vpp, stages=stages)


def _choices(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(VALUES[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _pairs(choice: dict[str, Any]) -> set[Pair]:
    return set(itertools.combinations(choice.items(), 2))


@functools.cache
def _matrix() -> tuple[Spec, ...]:
    """Complete each point of the grid so that few specs hold every possible pair of values."""
    draw = random.Random(5)
    rest = list(_choices(tuple(name for name in VALUES if name not in GRID)))
    chosen: list[Spec] = []
    seen: set[Pair] = set()
    for point in _choices(GRID):
        possible = [choice for more in draw.sample(rest, 160) if _spec(choice := point | more).possible]
        if possible:
            best = max(possible[:40], key=lambda choice: len(_pairs(choice) - seen))
            chosen.append(_spec(best))
            seen |= _pairs(best)
    return tuple(chosen)


@functools.cache
def _weights(arch: str, tied: bool) -> dict[str, torch.Tensor]:
    return eras.weights(arch, tied, seed=7)


@functools.cache
def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, token types and a mask under which the second row ends early."""
    stream = torch.Generator().manual_seed(11)
    ids = torch.randint(0, eras.VOCAB, (2, 20), generator=stream)
    ids[0, :2] = torch.tensor([0, eras.VOCAB - 1])
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return ids, (torch.arange(20) >= 8).long().expand(2, -1), mask


@functools.cache
def _expected(arch: str, tied: bool, gelu: str, head_gelu: str) -> Any:
    ids, types, mask = _inputs()
    bert = {"tokentypes": types, "padding_mask": mask} if arch.startswith("bert") else {}
    return eras.dense(arch, _weights(arch, tied), ids, **bert, gelu=gelu, head_gelu=head_gelu)


def _settings(spec: Spec) -> dict[str, Any]:
    """Return what the file cannot say and a person has to."""
    if spec.args:
        return {}
    settings: dict[str, Any] = {"heads": eras.HEADS, "gelu": spec.gelu, "vocab": eras.VOCAB}
    if spec.arch == eras.RESIDUAL_FROM_NORM:
        settings["post_norm"] = True
    if spec.core and not spec.tied:
        settings["tied"] = False
    return settings


@functools.cache
def _digest(arch: str, tied: bool, folder: Path) -> str:
    names = "legacy" if tied or arch == "llama" else "mcore-local"
    spec = Spec(arch=arch, tied=tied, names=names, gelu="erf")
    return open_checkpoint(eras.write(spec, folder / f"{arch}-{tied}", _weights(arch, tied))).digest()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for one plain checkpoint of each model, whose digests all others must have."""
    return tmp_path_factory.mktemp("plain")


@pytest.mark.parametrize("spec", _matrix(), ids=str)
def test_every_layout_computes_what_its_weights_do(spec: Spec, plain: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(eras.write(spec, tmp_path, _weights(spec.arch, spec.tied)), _settings(spec))
    model = load_model(checkpoint)
    gelu = "erf" if spec.gelu == "erf" else "tanh"
    head_gelu = "tanh" if spec.gelu == "openai" else "erf"
    expected = _expected(spec.arch, spec.tied, gelu, head_gelu)
    ids, types, mask = _inputs()
    with torch.no_grad():
        if spec.bert:
            output = model(ids, tokentypes=types, padding_mask=mask)
            torch.testing.assert_close(output.logits[mask.bool()], expected[0][mask.bool()], rtol=0, atol=2e-5)
            torch.testing.assert_close(output.binary_logits, expected[1], rtol=0, atol=2e-5)
        else:
            torch.testing.assert_close(model(ids), expected, rtol=0, atol=2e-5)
    assert checkpoint.digest() == _digest(spec.arch, spec.tied, plain)
    assert checkpoint.grid == (spec.tp, spec.pp)
    assert checkpoint.iteration == (0 if spec.release else eras.ITERATION)


def test_the_matrix_holds_every_pair_of_values_that_megatron_can_write() -> None:
    names = [*VALUES]
    held: set[Pair] = set()
    for spec in _matrix():
        held |= _pairs({name: getattr(spec, name, (spec.pp, spec.vpp, spec.stages)) for name in names})
    possible: set[Pair] = set()
    for choice in _choices(tuple(names)):
        new = _pairs(choice) - possible
        if new and _spec(choice).possible:
            possible |= new
    assert not possible - held


NO_ARGUMENTS = [
    Spec(names="legacy-2019", version=None, args=False, release=True),
    Spec(names="legacy", version=2.0, args=False, tp=2),
    Spec(names="mcore-te", args=False, pp=2),
    Spec(arch="bert", names="legacy-2019", version=1.0, args=False, container="pickle"),
    Spec(arch="bert", names="mcore-local", args=False, tp=4),
]


@pytest.mark.parametrize("spec", NO_ARGUMENTS, ids=str)
def test_a_file_without_arguments_asks_for_what_it_does_not_say(spec: Spec, tmp_path: Path) -> None:
    root = eras.write(spec, tmp_path, _weights(spec.arch, spec.tied))
    with pytest.raises(MpevalError, match="heads") as caught:
        open_checkpoint(root)
    assert "--set heads=" in caught.value.hint
    with pytest.raises(MpevalError, match="gelu") as caught:
        open_checkpoint(root, {"heads": eras.HEADS})
    assert "--set gelu=" in caught.value.hint


@pytest.mark.parametrize("pp", [1, 2])
def test_an_output_layer_that_may_be_a_copy_is_never_taken_for_one(pp: int, tmp_path: Path) -> None:
    spec = Spec(names="mcore-local", tied=False, args=False, pp=pp)
    root = eras.write(spec, tmp_path, _weights("gpt", False))
    said = {"heads": eras.HEADS, "gelu": "tanh", "vocab": eras.VOCAB}
    with pytest.raises(MpevalError, match=r"tied.*differ") as caught:
        load_model(open_checkpoint(root, said))
    assert "--set tied=false" in caught.value.hint


def test_a_gated_rotary_model_without_arguments_is_read_when_all_is_said(tmp_path: Path) -> None:
    spec = Spec(arch="llama", names="mcore-te", tp=2, tied=False, gelu="erf")
    root = eras.write(spec, tmp_path, _weights("llama", False))
    eras.damage("no arguments", root)
    with pytest.raises(MpevalError) as caught:
        open_checkpoint(root)
    assert "--set" in caught.value.hint
    said = {"heads": 4, "kv_heads": 2, "swiglu": True, "norm": "rmsnorm", "rope": True, "linear_bias": False}
    said |= {"qkv_bias": False, "tied": False, "vocab": eras.VOCAB, "context": eras.CONTEXT}
    ids = _inputs()[0]
    with torch.no_grad():
        logits = load_model(open_checkpoint(root, said))(ids)
    torch.testing.assert_close(logits, _expected("llama", False, "erf", "erf"), rtol=0, atol=2e-5)


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_core_names_have_one_row_order_even_without_a_version(arch: str, tmp_path: Path) -> None:
    """Megatron reorders the rows of tensors called `query_key_value` only: `linear_qkv` is younger than all orders."""
    spec = Spec(arch=arch, names="mcore-local", tp=2, tied=arch == "gpt", gelu="erf")
    root = eras.damage("no version", eras.write(spec, tmp_path, _weights(arch, spec.tied)))
    with torch.no_grad():
        logits = load_model(open_checkpoint(root))(_inputs()[0])
    torch.testing.assert_close(logits, _expected(arch, spec.tied, "erf", "erf"), rtol=0, atol=2e-5)


DAMAGED = {
    "missing shard": r"mp_rank_01_00[01]",
    "missing tracker": r"latest_checkpointed_iteration\.txt",
    "not a number": r"layers\.1\.mlp.*NaN",
    "unequal norm": r"layers\.1\..*norm.*differ",
    "wrong tied copy": r"tied.*differ",
    "hostile pickle": r"mp_rank_01_000.*posix\.system",
    "hostile prologue": r"mp_rank_01_000.*posix\.system",
    "hostile epilogue": r"mp_rank_01_000.*posix\.system",
    "truncated file": r"mp_rank_01_000/model_optim_rng\.pt",
    "beginning only": r"mp_rank_01_000/model_optim_rng\.pt",
    "missing tensor": r"layers\.1\.mlp\.down\.bias",
    "missing tensor on one rank": r"layers\.1\.mlp\.down\.bias",
    "unknown tensor": r"layers\.1\.mlp\.surprise",
    "missing layer": "layers",
    "mixture of experts": "experts",
}
"""What the message about each kind of damage must say."""
WHOLE = [
    Spec(names="legacy", version=2.0, tp=2, pp=2),
    Spec(names="legacy", version=1.0, tp=2, pp=2, container="pickle"),
    Spec(names="mcore-te", tp=2, pp=2),
    Spec(arch="bert", names="mcore-local", tp=2, pp=2, gelu="erf"),
]


OLD_CONTAINER = {"hostile prologue", "hostile epilogue"}
CASES = [(kind, spec) for kind in DAMAGED for spec in WHOLE if kind not in OLD_CONTAINER or spec.container == "pickle"]


@pytest.mark.parametrize(("kind", "spec"), CASES, ids=str)
def test_damage_is_named(kind: str, spec: Spec, tmp_path: Path) -> None:
    root = eras.damage(kind, eras.write(spec, tmp_path, _weights(spec.arch, spec.tied)))
    with pytest.raises(MpevalError, match=DAMAGED[kind]) as caught:
        load_model(open_checkpoint(root))
    assert caught.value.hint
    assert not (root / eras.CANARY).exists()


@pytest.mark.parametrize("kind", ["hostile pickle", *sorted(OLD_CONTAINER)])
def test_the_attacks_are_real(kind: str, tmp_path: Path) -> None:
    root = eras.damage(kind, eras.write(WHOLE[1], tmp_path, _weights("gpt", True)))
    with eras.megatron_present(), contextlib.suppress(RuntimeError, AssertionError, TypeError):
        path = root / "iter_0000500/mp_rank_01_000/model_optim_rng.pt"
        torch.load(path, map_location="cpu", weights_only=False)
    assert (root / eras.CANARY).exists()
