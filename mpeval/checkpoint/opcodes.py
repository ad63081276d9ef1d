"""Walk a pickle's opcodes before it is decoded: where it ends, what it names, and whether decoding it is affordable."""

from __future__ import annotations

import io
import pickletools
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

OPCODES = 250_000
"""So many opcodes every file may have; a larger file may have one more for each `BYTES_AN_OPCODE` of it."""
BYTES_AN_OPCODE = 32
GLOBALS = 1000
"""More distinct names than this no checkpoint has: each costs a class of its own."""
NESTING = 4
"""How deep pickles inside the byte strings of pickles are looked into."""
IN_A_ROW = 16
"""So many pickles, one after another, are looked at inside a byte string: torch wrote five before 1.6."""
STRING_BYTES = 16 << 20
"""No string of a checkpoint is longer: tensors are not in the pickle."""
FEW = 1 << 20
"""So many values every file may hash as keys."""
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
    try:
        for text in _opcodes(stream, size, found):
            _look_inside(text, size, depth, found)
        found.end = stream.tell()
    # pickletools raises any of these for a stream that is none
    except (ValueError, UnicodeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        found.failure = str(error)[:200] or type(error).__name__
    return found


def _opcodes(stream: IO[bytes], size: int, found: Walk) -> Iterator[bytes | str]:
    """Go through the opcodes, note globals, and yield every string of text or bytes."""
    budget = OPCODES + size // BYTES_AN_OPCODE
    strings, stack = _Strings(size), _Stack()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", _Bounded(stream)))):
        budget -= 4 if opcode.name in _SETS else 1
        if budget < 0:
            raise ValueError(f"more opcodes than a file of {size} bytes deserves")
        if opcode.name in _PUTS and isinstance(argument, int) and argument > number:
            raise ValueError(f"memo slot {argument} beyond what the pickle can have filled")
        if opcode.name in {"GLOBAL", "INST"}:
            _note(str(argument).replace(" ", ".", 1), found)
        elif opcode.name == "STACK_GLOBAL":
            _note(".".join(strings.latest), found)
        strings.see(opcode.name, argument)
        stack.see(opcode, argument, number)
        if isinstance(argument, str | bytes | bytearray):
            yield argument if isinstance(argument, str) else bytes(argument)


class _Bounded:
    """A stream that refuses to read a string longer than any in a checkpoint, before there is memory for it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.readline, self.tell, self._read = stream.readline, stream.tell, stream.read

    def read(self, size: int) -> bytes:
        """Read `size` bytes."""
        if size > STRING_BYTES:
            raise ValueError(f"a string of {size} bytes, longer than any in a checkpoint")
        return self._read(size)


class _Stack:
    """How many values the tuples on a pickle's stack unfold to: hashing one visits them all, shared or not."""

    def __init__(self) -> None:
        self.items: list[int] = []  # 0 is a mark
        self.memo: dict[int, int] = {}
        self.hashed = 0

    def see(self, opcode: pickletools.OpcodeInfo, argument: object, number: int) -> None:
        """Follow the opcode that is the pickle's `number`th."""
        name, top = opcode.name, max(1, self.items[-1]) if self.items else 1
        if name == "MEMOIZE" or name in _PUTS:
            self.memo[argument if isinstance(argument, int) else len(self.memo)] = top
        elif name in _GETS:
            self.items.append(self.memo.get(argument, 1) if isinstance(argument, int) else 1)
        elif name == "DUP":
            self.items.append(top)
        elif name == "MARK":
            self.items.append(0)
        else:
            taken = self._take(name, opcode.stack_before)
            self._hash(taken[:: _HASHES[name]] if name in _HASHES else [], number)
            weight = 1 + sum(taken) if name in _PASSES_ON else 1
            if weight > FEW_VALUES + number:
                raise ValueError("a tuple that unfolds to more values than the pickle has, over and over the same")
            self.items += [weight] * (0 if name in _FILLS else len(opcode.stack_after))

    def _take(self, name: str, before: list[pickletools.StackObject]) -> list[int]:
        """Take off what an opcode takes; the container that it fills stays."""
        if pickletools.markobject in before:
            begin = end = len(self.items)
            while begin > 0 and self.items[begin - 1]:
                begin -= 1
            taken = self.items[begin:end]
            del self.items[max(0, begin - 1) :]
            return taken
        begin = max(0, len(self.items) - len(before) + (name in _FILLS))
        taken = self.items[begin:]
        del self.items[begin:]
        return taken

    def _hash(self, weights: list[int], number: int) -> None:
        self.hashed += sum(weights)
        if self.hashed > FEW + HASHES * number:
            raise ValueError("dictionary keys that unfold to more values than the pickle has")


HASHES = 16
"""So many values may be hashed for each opcode."""
FEW_VALUES = 1000
_PASSES_ON = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"})
_FILLS = frozenset({"SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD"})
_HASHES = {"SETITEM": 2, "SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}
"""Opcodes that hash what they take: every second item of it, or all."""


class _Strings:
    """The last two strings pushed, which are what STACK_GLOBAL takes its names from, memo and all."""

    def __init__(self, size: int) -> None:
        self.left = size + STRING_BYTES
        self.latest: list[str] = []
        self.last: object = None
        self.memo: dict[int, str] = {}

    def see(self, name: str, argument: object) -> None:
        """Follow one opcode."""
        if isinstance(argument, str):
            # one letter outside the basic plane makes every letter of a string take four bytes
            self.left -= sys.getsizeof(argument)
            if self.left < 0:
                raise ValueError("more text than the file has bytes")
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
    for stream in _pickles(data):
        for _ in range(IN_A_ROW):
            at = stream.tell()
            is_plain = stream.read(1) == b"\x80"
            stream.seek(at)
            inner = walk(stream, size, depth + 1)
            for name in inner.globals if inner.failure is None or is_plain else ():
                _note(name, found)
            if inner.failure is not None or stream.tell() >= stream.seek(0, io.SEEK_END):
                break
            stream.seek(inner.end)


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """Yield streams that stand where a pickle may begin: the whole, or those of the entries of a zip file."""
    if not data.startswith(_ENTRY):
        if b"." in data:
            yield io.BytesIO(data)
        return
    at = 0
    for _ in range(ENTRIES):
        name, extra = (int.from_bytes(data[at + low : at + low + 2], "little") for low in (26, 28))
        begin = at + 30 + name + extra
        if data[at + 30 : begin - extra].endswith(b".pkl"):
            if data[at + 8 : at + 10] == b"\x08\0":
                yield io.BytesIO(_unpacked(data[begin:]))
            else:
                stream = io.BytesIO(data)
                stream.seek(begin)
                yield stream
        at = data.find(_ENTRY, at + 4)
        if at < 0:
            return


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(data, STRING_BYTES)
    except zlib.error:
        return b""


_ENTRY = b"PK\x03\x04"
ENTRIES = 1000
"""So many entries of a zip file inside a byte string are looked at."""
