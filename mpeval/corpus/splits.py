"""Which documents of a corpus are for training, which for validation, which for the test."""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import numpy as np

from mpeval.errors import ConfigError, DataError

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


def split_shares(split: str) -> list[float]:
    """Return the shares of the three parts, of 1 together; `90,10` means `90,10,0`.

    Raises:
        ConfigError: not one to three numbers of at least 0 with a sum above 0.
    """
    try:
        shares = [float(share) for share in split.split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or any(not 0 <= share < math.inf for share in shares) or sum(shares) == 0:
        raise ConfigError(
            f"split `{split}` is not up to three shares with commas between them",
            "write the shares of training, validation and test documents, as in `--set split=969,30,1`",
        )
    total = float(np.sum(np.array(shares)))
    return [share / total for share in shares] + [0.0] * (3 - len(shares))


def split_bounds(split: str, documents: int) -> list[int]:
    """Return the four boundaries of the parts among `documents`: the sums of the shares, rounded; the last is fixed.

    The rule of Megatron's builders: halves are rounded to the even number, as Python rounds.
    """
    sums = itertools.accumulate(split_shares(split), initial=0.0)
    return [*(round(share * documents) for share in itertools.islice(sums, 3)), documents]


def documents_of(part: Part, split: str, documents: int, name: str) -> range:
    """Return the documents of one part of the corpus `name`.

    Raises:
        ConfigError: no such split.
        DataError: the part has no document.
    """
    bounds = split_bounds(split, documents)
    number = PARTS.index(part)
    if bounds[number] == bounds[number + 1]:
        counts = [str(high - low) for low, high in itertools.pairwise(bounds)]
        raise DataError(
            f"no document of `{name}` is in part `{part}`: split `{split}` of {documents:,} documents "
            f"gives {', '.join(counts[:2])} and {counts[2]}",
            f"give `{part}` a larger share by `--set split=...`, or preprocess more documents",
        )
    return range(bounds[number], bounds[number + 1])
