"""Walk a pickle's opcodes before it is decoded: where it ends, what it names, and whether decoding it is affordable."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

OPCODES = 250_000
"""So many opcodes every file may have; a larger file may have one more for each `BYTES_AN_OPCODE` of it."""
BYTES_AN_OPCODE = 32
GLOBALS = 1000
"""More distinct names than this no checkpoint has: each costs a class of its own."""
NESTING = 4
"""How deep pickles inside the byte strings of pickles are looked into."""
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_SETS = frozenset({"EMPTY_SET", "FROZENSET"})
"""An empty set takes four times the memory of any other empty thing."""
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


@dataclass(kw_only=True)
class Walk:
    """What the opcodes of one pickle say."""

    end: int = 0
    """Where the pickle ends in the stream, 0 if it never does."""
    globals: dict[str, None] = field(default_factory=dict)
    """Every global it names, and those of pickles inside its byte strings."""
    failure: str | None = None
    """Why it cannot be decoded, or would take more memory than a file of its size deserves."""


def walk(stream: IO[bytes], size: int, depth: int = 0) -> Walk:
    """Read one pickle's opcodes from where `stream` stands, running nothing and building nothing.

    Args:
        stream: the file; it is left after the pickle.
        size: bytes of the whole file, which bound how much a pickle in it may cost.
        depth: how many pickles this one is inside of.
    """
    found = Walk()
    begin = stream.tell()
    try:
        for text in _opcodes(stream, begin, size, found):
            _look_inside(text, size, depth, found)
        found.end = stream.tell()
    # pickletools raises any of these for a stream that is none
    except (ValueError, UnicodeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        found.failure = str(error)[:200] or type(error).__name__
    return found


def _opcodes(stream: IO[bytes], begin: int, size: int, found: Walk) -> Iterator[bytes | str]:
    """Go through the opcodes, note globals, and yield every string of text or bytes."""
    budget = OPCODES + size // BYTES_AN_OPCODE
    strings = _Strings()
    for opcode, argument, _ in pickletools.genops(stream):
        budget -= 4 if opcode.name in _SETS else 1
        if budget < 0:
            raise ValueError(f"more opcodes than a file of {size} bytes deserves")
        if opcode.name in _PUTS and isinstance(argument, int) and argument > stream.tell() - begin:
            raise ValueError(f"memo slot {argument} beyond the pickle's length")
        if opcode.name in {"GLOBAL", "INST"}:
            _note(str(argument).replace(" ", ".", 1), found)
        elif opcode.name == "STACK_GLOBAL":
            _note(".".join(strings.latest), found)
        strings.see(opcode.name, argument)
        if isinstance(argument, str | bytes | bytearray):
            yield argument if isinstance(argument, str) else bytes(argument)


class _Strings:
    """The last two strings pushed, which are what STACK_GLOBAL takes its names from, memo and all."""

    def __init__(self) -> None:
        self.latest: list[str] = []
        self.last: object = None
        self.memo: dict[int, str] = {}

    def see(self, name: str, argument: object) -> None:
        """Follow one opcode."""
        if name == "MEMOIZE" or name in _PUTS:
            slot = argument if isinstance(argument, int) else len(self.memo)
            self.memo[slot] = self.last if isinstance(self.last, str) else ""
            return
        self.last = self.memo.get(argument, "") if name in _GETS and isinstance(argument, int) else argument
        if isinstance(self.last, str):
            self.latest = [*self.latest[-1:], self.last]


def _note(name: str, found: Walk) -> None:
    found.globals.setdefault(name[:200])
    if len(found.globals) > GLOBALS:
        raise ValueError(f"more than {GLOBALS} globals named")


def _look_inside(text: bytes | str, size: int, depth: int, found: Walk) -> None:
    """Note the globals of a pickle, or of a torch file, that a string holds.  It is never decoded."""
    if depth >= NESTING or len(text) < 2:
        return
    try:
        # before protocol 3 bytes are pickled as text, one letter a byte
        data = text.encode("latin-1") if isinstance(text, str) else text
    except UnicodeEncodeError:
        return
    if data.startswith(b"PK\x03\x04"):
        start = data.find(b"\x80\x02")
        data = data[start:] if start >= 0 else b""
    if b"." not in data:
        return
    inner = walk(io.BytesIO(data), size, depth + 1)
    if inner.globals and (inner.failure is None or data[:1] == b"\x80"):
        for name in inner.globals:
            _note(name, found)
