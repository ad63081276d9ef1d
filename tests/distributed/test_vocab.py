"""Loss and scores over a split vocabulary against torch's own over the whole."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch.nn import functional as F

from mpeval.parallel.group import Axis, Group
from mpeval.parallel.vocab import cross_entropy, token_scores

TP = pytest.mark.parametrize("tp", [1, 2, 4])
VOCAB, PADDED = 10, 16
Results = dict[str, torch.Tensor]


def _given(ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = 30 * torch.randn(6, PADDED, generator=draw) + 200  # large: a softmax without the maximum would overflow
    if ties:
        logits = (logits / 20).round()
    logits[:, VOCAB:] += 500  # padding rows would win, if they were let in
    return logits, torch.tensor([0, 9, 3, 4, 8, 9])


def _local(group: Group, logits: torch.Tensor, columns: int) -> tuple[torch.Tensor, int]:
    size = PADDED // group.tp.ranks
    first = group.tp.rank * size
    return logits[:, first : max(first, min(first + size, columns))].clone(), first


def _loss(group: Group, columns: int, dtype: torch.dtype) -> Results:
    logits, targets = _given()
    local, first = _local(group, logits.to(dtype), columns)
    local.requires_grad_()
    before = local.detach().clone()
    losses = cross_entropy(local, targets, first=first, axis=group.tp)
    (losses * torch.arange(1.0, 7.0)).sum().backward()
    assert local.grad is not None
    torch.testing.assert_close(local.detach(), before, rtol=0, atol=0)
    return {"losses": losses.detach(), "grad": local.grad}


@TP
@pytest.mark.parametrize("columns", [VOCAB, PADDED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_equals_torch_in_value_and_gradient(tp: int, columns: int, dtype: torch.dtype) -> None:
    ranks = run_ranks(_loss, tp, columns, dtype)
    logits, targets = _given()
    whole = logits[:, :columns].to(dtype).float().requires_grad_()
    losses = F.cross_entropy(whole, targets, reduction="none")
    (losses * torch.arange(1.0, 7.0)).sum().backward()
    assert whole.grad is not None
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], losses.detach(), rtol=1e-5, atol=1e-4)
    merged = torch.cat([rank["grad"] for rank in ranks], dim=-1).float()
    torch.testing.assert_close(merged, whole.grad, rtol=tolerance, atol=tolerance)


def _scores(group: Group, ties: bool, columns: int) -> Results:
    logits, targets = _given(ties)
    local, first = _local(group, logits, columns)
    found = token_scores(local, targets, first=first, axis=group.tp)
    return {"logs": found.log_probabilities, "best": found.best}


@TP
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [VOCAB, PADDED, 4])
def test_scores_equal_log_softmax_and_arg_max_ties_included(tp: int, ties: bool, columns: int) -> None:
    ranks = run_ranks(_scores, tp, ties, columns)
    logits, targets = _given(ties)
    logs = torch.log_softmax(logits[:, :columns].double(), dim=-1)
    best = logits[:, :columns].argmax(-1)
    inside = targets < columns
    for rank in ranks:
        expected = logs.gather(-1, targets.clamp(max=columns - 1)[:, None]).squeeze(-1).float()
        torch.testing.assert_close(rank["logs"][inside], expected[inside], rtol=1e-5, atol=1e-4)
        assert rank["best"].tolist() == best.tolist()


def test_the_tied_logits_of_the_test_do_have_ties() -> None:
    logits, _ = _given(ties=True)
    top = logits[:, :VOCAB].max(dim=-1, keepdim=True).values
    assert ((logits[:, :VOCAB] == top).sum(dim=-1) > 1).any()


def _dtensor_loss(group: Group) -> Results:
    """The loss of torch's own tensor parallelism, DTensor's `loss_parallel`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    logits, targets = _given()
    mesh = init_device_mesh("cpu", (group.tp.ranks,))
    size = PADDED // group.tp.ranks
    local = logits[:, group.tp.rank * size : (group.tp.rank + 1) * size].clone().requires_grad_()
    with loss_parallel():
        loss = F.cross_entropy(DTensor.from_local(local, mesh, [Shard(1)]), targets, reduction="sum")
        loss.backward()
    assert local.grad is not None
    ours = logits[:, group.tp.rank * size : (group.tp.rank + 1) * size].clone().requires_grad_()
    mine = cross_entropy(ours, targets, first=group.tp.rank * size, axis=group.tp).sum()
    mine.backward()
    assert ours.grad is not None
    return {"theirs": loss.detach(), "ours": mine.detach(), "their grad": local.grad, "our grad": ours.grad}


@pytest.mark.filterwarnings("ignore")  # torch warns about its own DTensor internals
def test_loss_and_gradient_equal_those_of_dtensor() -> None:
    for rank in run_ranks(_dtensor_loss, 2):
        theirs = rank["theirs"].full_tensor() if hasattr(rank["theirs"], "full_tensor") else rank["theirs"]
        torch.testing.assert_close(rank["ours"], theirs, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(rank["our grad"], rank["their grad"], rtol=1e-5, atol=1e-5)


def test_a_single_rank_needs_no_process_group() -> None:
    logits, targets = _given()
    found = token_scores(logits[:, :VOCAB], targets, first=0, axis=Axis())
    expected = -F.cross_entropy(logits[:, :VOCAB], targets, reduction="none")
    torch.testing.assert_close(found.log_probabilities, expected, rtol=1e-5, atol=1e-4)
