"""What a result says of the weights behind it: digest, name, and the tokenizer that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpeval.checkpoint.args import UNKNOWN_VOCAB
from mpeval.checkpoint.sharded import ShardedCheckpoint, combine_digests
from mpeval.errors import CheckpointError
from mpeval.finetuned import Finetuned
from mpeval.parallel.group import gather_objects
from mpeval.results import CheckpointInfo
from mpeval.tokenizer import Tokenizer, check_fits, find_tokenizer

if TYPE_CHECKING:
    from mpeval.parallel.group import Group


def digest_of(checkpoint: ShardedCheckpoint, group: Group) -> str:
    """Digest the checkpoint, the tensors shared out over all ranks."""
    mine = sorted(checkpoint.tensors)[group.world.rank :: group.world.ranks]
    parts = gather_objects({name: checkpoint.tensor_digest(name) for name in mine}, group.world)
    return combine_digests({name: digest for part in parts for name, digest in part.items()})


def with_tokenizer(
    checkpoint: ShardedCheckpoint, given: Path | None, path: Path
) -> tuple[ShardedCheckpoint, Tokenizer]:
    """Return the checkpoint and the tokenizer `given`, or beside it, whose size is its vocabulary if it had none.

    Raises:
        TokenizerError: there is none, or it is of another model.
    """
    config = checkpoint.config
    unknown = config.origins.get("vocab") == UNKNOWN_VOCAB
    tokenizer = find_tokenizer(given, [checkpoint.root, checkpoint.path, path])
    # Hugging Face folders may have more rows than tokens; the tokenizer that lies among them is theirs all the same
    own = checkpoint.format == "huggingface" and given is None
    check_fits(tokenizer, vocab=None if unknown or own else config.vocab, padded_vocab=config.padded_vocab)
    return (checkpoint.with_vocab(tokenizer.size, "tokenizer") if unknown else checkpoint), tokenizer


def check_causal(checkpoint: ShardedCheckpoint, path: object) -> None:
    """Refuse a BERT: lm-eval's tasks ask for the probability of what comes next.

    Raises:
        CheckpointError: it is one.
    """
    if checkpoint.config.family != "gpt":
        raise CheckpointError(
            f"`{path}` holds a BERT, and lm-eval's tasks ask a language model what comes next",
            "give a GPT; for a BERT there are mpeval's own tasks, see `mpeval tasks list`",
        )


def name_of_run(root: Path, finetuned: Finetuned | None) -> str:
    """Name a checkpoint after its folder; one of several seeds' runs after their folder too."""
    root = root.resolve()
    one_of_several = finetuned is not None and root.name == f"seed-{finetuned.training.seed}"
    return f"{root.parent.name}/{root.name}" if one_of_several else root.name


def checkpoint_info(
    checkpoint: ShardedCheckpoint, given: Path, digest: str, finetuned: Finetuned | None
) -> CheckpointInfo:
    """Describe a checkpoint given as `given`, a training run by its name (`name_of_run`)."""
    return CheckpointInfo(
        name=name_of_run(checkpoint.root, finetuned) or str(given),
        path=str(given),
        digest=digest,
        format=checkpoint.format,
        version=checkpoint.version,
        iteration=checkpoint.iteration,
        grid=checkpoint.grid,
        parameters=checkpoint.config.parameters(),
        gelu=checkpoint.config.gelu,
        vocab=checkpoint.config.vocab,
        padded_vocab=checkpoint.config.padded_vocab,
    )
