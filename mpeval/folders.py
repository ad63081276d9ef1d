"""Where the project's data folders are, and how files are written so that none is ever half there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mpeval.errors import OutputError


def data_folder(name: str) -> Path:
    """Return the folder `tasks`, `checkpoints` or `leaderboard`: the wheel's copy, or the source tree's."""
    package = Path(__file__).resolve().parent
    packaged = package / "_data" / name
    return packaged if packaged.is_dir() else package.parent / name


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it into place.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(data)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file under a temporary name to fill; flush it to disk and rename it into place, or remove it on error."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; rename it into place at the end, or remove it after an error.

    With `replace` a folder that is already there is exchanged for the new one, else it is an error.

    Raises:
        OutputError: `path` is already there, or cannot be written.
    """
    there = OutputError(f"`{path}` is already there", "write to another folder, or remove it")
    try:
        path = path.resolve()
        if not replace and path.exists() and (path.is_file() or any(path.iterdir())):
            raise there
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:80]}."))
    except (OSError, ValueError) as error:
        raise unwritable(path, error, "") from error
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        _flush(temporary)
        if replace and path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        # a folder that another run has put there meanwhile is not empty, so nothing can take its place
        raise (there if error.errno in {errno.ENOTEMPTY, errno.EEXIST} else unwritable(path, error, "")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Force every file below a folder to disk, so that the rename cannot overtake the data."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def unwritable(
    path: Path, error: OSError | ValueError, option: str = "--output", *, kind: str | None = None
) -> OutputError:
    """Describe why `path` cannot be written, and by which option (none: as an argument) another can be given.

    `kind` says what to give: by default a folder for `--output` or an argument, a file for any other option.
    """
    kind = kind or ("folder" if option in {"--output", ""} else "file")
    by = f" by `{option}`" if option else ""
    said = getattr(error, "strerror", None) or error
    return OutputError(f"cannot write `{path}`: {said}", f"give a {kind} you may write to{by}")
