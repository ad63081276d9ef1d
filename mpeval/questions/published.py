"""The files of a benchmark's split in their published layout: in folders, compressed or in archives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mpeval.corpus.compressed import blocks
from mpeval.errors import DataError, shown
from mpeval.questions.archives import LARGEST, LONGEST, members
from mpeval.tasks.cards import Card, Split

ENDINGS = ("", ".gz", ".xz", ".zst")
"""How a file may be compressed."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file: its path in the published layout, where it was found, and its content, unpacked."""

    path: str
    where: str
    content: bytes

    @cached_property
    def digest(self) -> str:
        """The sha256 of the content, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def text(self) -> str:
        """Return the content as text.

        Raises:
            DataError: it is not UTF-8; names the line.
        """
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"`{self.where}` is not UTF-8 text: line {line}: {error}", "get the published file again"
            ) from error

    def line(self, number: int) -> str:
        """Name a line of the file in a message."""
        return f"`{self.where}`, line {number}"


def digest_of(files: Sequence[Published], split: Split, other: Split | None = None) -> str:
    """Return the digest of a split, the same whether its files lie in folders or archives.

    It is the sha256 of the only file of a split that is one file, else that over the sorted lines `path NUL sha256 LF`.
    With `other` it is what the digest would be if the files lay where those of another split do.
    """
    if len(files) == 1 and files[0].path == split.files[0]:
        return files[0].digest
    moved = dict(zip(split.files, (other or split).files, strict=False))
    return hashlib.sha256("".join(sorted(f"{_moved(f.path, moved)}\0{f.digest}\n" for f in files)).encode()).hexdigest()


def _moved(path: str, moved: dict[str, str]) -> str:
    if path in moved:
        return moved[path]
    folder, _, name = path.rpartition("/")
    return f"{moved[folder]}/{name}" if folder in moved else path


def find(card: Card, split: Split, folder: Path) -> tuple[list[Published], str]:
    """Read a split's files below `folder`, and say in short where they are.

    A folder of the layout holds numbered files `N.txt`; they come by folder, then by number.

    Raises:
        DataError: there are none, or what is there belongs to another split.
    """
    if not folder.is_dir():
        problem = (
            f"`{folder}` is not a folder" if folder.exists() else f"no such data folder: `{folder}` does not exist"
        )
        raise DataError(problem, f"it should hold `{split.files[0]}`")
    _check_other_splits(card, split, folder)
    found: list[Published] = []
    sources: list[str] = []
    missing = []
    for path in split.files:
        place = _place(card, path, folder)
        if place is None:
            missing.append(path)
            continue
        sources.append(str(place))
        if place.is_dir():
            found += [_read(f"{path}/{p.name}", p, LARGEST) for p in place.iterdir() if _is_numbered(p.name)]
        else:
            found.append(_read(path, place, LONGEST))
    if missing and split.archives:
        for archive in _archives(card, split, folder):
            sources.append(str(archive))
            found += _packed(split, archive, missing)
    if not found or (missing and not split.archives):
        raise _absent(card, folder, (missing or split.files)[0])
    if split.archives:
        found = sorted(found, key=lambda file: _order(file.path))
    return found, ", ".join(sources)


def is_there(card: Card, split: Split, folder: Path) -> bool:
    """Tell whether `find` would find any file of a split."""
    return any(_place(card, path, folder) for path in split.files) or bool(_archives(card, split, folder))


def _order(path: str) -> tuple[str, int, str]:
    """Sort key of a numbered file: its folder, then its number; files with other names come last."""
    folder, _, name = path.rpartition("/")
    stem = name.removesuffix(".txt")
    return folder, int(stem) if stem.isascii() and stem.isdigit() and len(stem) < 19 else 1 << 62, name


def _place(card: Card, path: str, folder: Path) -> Path | None:
    """Find a file or folder of the published layout below `folder`, or in it where that is part of the layout."""
    for root in (folder, folder / card.name):
        for ending in ENDINGS:
            if (place := root / f"{path}{ending}").exists():
                return place
    parts = Path(path).parts
    inside = folder.resolve().parts
    for cut in range(1, len(parts)):
        rest = Path(*parts[cut:])
        if inside[-cut:] == parts[:cut] or (cut == len(parts) - 1 and rest.suffix):
            for ending in ENDINGS:
                if (place := folder / f"{rest}{ending}").exists():
                    return place
    return None


def _check_other_splits(card: Card, split: Split, folder: Path) -> None:
    """Refuse a folder that is itself, by its name, part of the layout of another split."""
    inside = folder.resolve().parts
    own = {Path(path).parent.parts for path in split.files}
    for other in card.splits:
        for path in other.files:
            parent = Path(path).parent.parts
            if len(parent) > 1 and parent not in own and inside[-len(parent) :] == parent:
                raise DataError(
                    f"`{folder}` is the {other.name} split of {card.title}, not {split.name}",
                    f"give the folder that holds `{split.files[0]}`, or ask for the split {other.name}",
                )


def _read(path: str, place: Path, most: int) -> Published:
    """Read and unpack one file of at most so many bytes."""
    parts, size = [], 0
    for block, _ in blocks(place):
        size += len(block)
        if size > most:
            raise DataError(f"`{place}` has more than {most:,} bytes", "no published file is that large; get it again")
        parts.append(block)
    return Published(path=path, where=str(place), content=b"".join(parts))


def _is_numbered(name: str) -> bool:
    return name.endswith(".txt") and not name.startswith(".")


def _archives(card: Card, split: Split, folder: Path) -> list[Path]:
    """List the archives that match the first pattern that any matches."""
    for pattern in split.archives:
        for root in (folder, folder / card.name):
            if found := sorted(root.glob(pattern)):
                return found
    return []


def _packed(split: Split, archive: Path, folders: Sequence[str]) -> list[Published]:
    """Read from an archive the numbered files of some of the split's folders.

    Raises:
        DataError: it holds no file of the split at all.
    """
    others = ""

    def wanted(name: str) -> bool:
        nonlocal others
        inside, _, last = name.rpartition("/")
        if not _is_numbered(last):
            return False
        if inside not in split.files:
            others = others or name
        return inside in split.files

    found = [
        Published(path=name, where=f"{archive}: {name}", content=content) for name, content in members(archive, wanted)
    ]
    if not found:
        held = f"`{shown(others)}`" if others else "no text files"
        raise DataError(
            f"`{archive}` holds nothing of the {split.name} split: expected `{split.files[0]}/...`, found {held}",
            "get the published archive, or ask for the split that it holds",
        )
    return [file for file in found if file.path.rpartition("/")[0] in folders]


def _absent(card: Card, folder: Path, missing: str) -> DataError:
    found = sorted(item.name for item in folder.iterdir())
    return DataError(
        f"no {card.title} data in `{folder}`: expected `{missing}`",
        f"found: {', '.join(f'`{name}`' for name in found[:8]) or 'nothing'}; get it from {card.homepage}",
    )
