"""Print rows, sha256 and questions digest of the splits that lie in a folder, as a task card states them.

python scripts/card_checksums.py FOLDER TASK...
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpeval.data import load_data
from mpeval.errors import DataError
from mpeval.questions.question import digest_of
from mpeval.tasks.cards import Card, Split, load_card


def lines(card: Card, split: Split, folder: Path) -> list[str]:
    """Return the lines of a card about one split, or a comment that says why there are none."""
    try:
        data = load_data(card, folder, split.name, allow_modified=True)
    except DataError as error:
        return [f"# {card.name} {split.name}: {error}"]
    key = f'"{split.name}"' if "." in split.name else split.name
    found = [f"[splits.{key}.published]  # {', '.join(data.flags) or 'as the card says'}"]
    if data.questions:
        found += [f"rows = {len(data.questions)}", f'questions = "{digest_of(data.questions)}"']
    return [*found, f'sha256 = "{data.digest.removeprefix("sha256:")}"']


def main(folder: str, *tasks: str) -> None:
    """Print what there is of each task."""
    for card in map(load_card, tasks):
        for split in card.splits:
            print("\n".join(lines(card, split, Path(folder))), end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
