"""Read a pickle as data: no global of a file is ever imported, no code of it ever runs.

A checkpoint pickled by Megatron names classes of many versions of many packages.  Here a short list of names is
mapped to harmless stand-ins of our own, and every other name to an inert stub that records what the file says
about it.  Names that have no business in a checkpoint (`os.system`, `builtins.eval`, ...) make the file refused.
"""

from __future__ import annotations

import io
import pickle
import stat
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from mpeval.checkpoint.opcodes import walk
from mpeval.errors import CheckpointError, shown

_HOSTILE = """
os posix posixpath nt ntpath subprocess sys shutil socket runpy ctypes _ctypes importlib imp pickle _pickle cPickle
dill cloudpickle marshal code codeop pty platform webbrowser multiprocessing threading _thread asyncio operator
_operator functools itertools inspect types.FunctionType types.CodeType tempfile io.open pydoc timeit cProfile
profile pdb bdb trace commands popen2 signal.signal atexit gc urllib http ftplib smtplib requests torch.hub
torch.load torch.serialization torch.utils.cpp_extension torch._inductor torch._dynamo torch.jit numpy.testing
numpy.distutils numpy.f2py numpy.load distutils setuptools pip
io.open_code io.FileIO _io.open _io.open_code _io.FileIO _posixsubprocess _socket ssl _ssl _winapi winreg msvcrt
_frozen_importlib _frozen_importlib_external _imp zipimport pkgutil ensurepip venv doctest idlelib
lib2to3 linecache fileinput zipfile tarfile mmap sqlite3 telnetlib xmlrpc wsgiref socketserver logging.config
joblib pandas.read_pickle pandas.eval numexpr aiohttp paramiko numpy.fromfile numpy.loadtxt
numpy.savetxt numpy.lib.npyio numpy.lib.utils torch.package torch.multiprocessing
torch.distributed.run torch.distributed.launch torch.distributed.elastic
types.MethodType shelve copyreg.add_extension _testcapi
"""
HOSTILE_MODULES = frozenset(_HOSTILE.split())
"""Modules (or single `module.name`s) that no checkpoint needs and that run code or touch the system."""

_HARMLESS = "bool bytearray bytes complex dict float frozenset int list long object range set slice str tuple xrange"
HARMLESS_BUILTINS = frozenset(_HARMLESS.split())


NEEDED = frozenset({"torch.serialization._get_layout"})
"""Names in hostile modules that PyTorch's own files need; stand-ins take their place."""


def is_hostile(name: str) -> bool:
    """Tell whether the qualified `name` is one that only an attack would put into a checkpoint."""
    if name in NEEDED:
        return False
    module, _, attribute = name.partition(".")
    if module in {"builtins", "__builtin__", "__builtins__"}:
        return attribute not in HARMLESS_BUILTINS
    parts = name.split(".")
    return any(".".join(parts[:end]) in HOSTILE_MODULES for end in range(1, len(parts) + 1))


class _Copies:
    """How many values may still be copied: a file can name one long list a thousand times."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        """Count some copies.

        Raises:
            UnpicklingError: more than the length of the pickle can explain.
        """
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError("the same values are copied over and over")


class _Qualified:
    """The name of the class that the file asked for, of the stub and its class; the file can set no other."""

    def __get__(self, made: Stub | None, kind: type[Stub]) -> str:
        return kind._name

    def __set__(self, made: Stub, value: object) -> NoReturn:
        raise AttributeError("the name of a stub's class is fixed")


class Stub:
    """An inert stand-in for an object of a class that is not imported; keeps arguments and state."""

    qualified = _Qualified()
    _name = "?"
    _copies = _Copies(0)

    def __new__(cls, *args: object, **kwargs: object) -> Stub:
        """Record the constructor's arguments."""
        cls._copies.take(len(args) + len(kwargs))
        made = super().__new__(cls)
        made.__dict__["stub_args"] = args
        made.__dict__["stub_kwargs"] = kwargs
        return made

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Accept anything, do nothing."""

    def __setstate__(self, state: object) -> None:
        """Keep the state: a dictionary as attributes, anything else as `stub_state`."""
        if isinstance(state, dict):
            type(self)._copies.take(len(state))
            self.__dict__.update({key if isinstance(key, str) else shown(key): state[key] for key in state})
        else:
            self.__dict__["stub_state"] = state

    def __setitem__(self, key: object, value: object) -> None:
        """Accept the items of a dictionary subclass; nothing reads them."""

    def append(self, value: object) -> None:
        """Accept the elements of a list subclass; nothing reads them."""

    def extend(self, values: object) -> None:
        """Accept the elements of a list subclass; nothing reads them."""

    def add(self, value: object) -> None:
        """Accept the elements of a set subclass; nothing reads them."""

    def __repr__(self) -> str:
        """Name the class that the file asked for."""
        return f"<{self.qualified}>"


class StorageKind(NamedTuple):
    """The element type of a pickled storage: `torch.FloatStorage` stands for `float32`."""

    dtype: str


class StorageRef(NamedTuple):
    """One storage of the file: where it is (`key`), of what type and how many elements."""

    key: str
    dtype: str
    elements: int


class TensorRef(NamedTuple):
    """A tensor as the pickle describes it: a strided view of a storage, no data read."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
OTHER_SIZES = {"complex64": 8, "complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "untyped": 1}
"""Element sizes of storages that no weight is in: tensors of them are stubs."""
_OTHER_STORAGES = {
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "UntypedStorage": "untyped",
}
DIMENSIONS = 16
"""No weight has more; torch allows 64."""


class _OtherTensor(Stub):
    """A tensor of a dtype that no weight has."""

    _name = "torch.Tensor"


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorRef | Stub:
    sizes, strides = _numbers(shape), _numbers(stride)
    if not isinstance(storage, StorageRef) or not isinstance(offset, int) or len(sizes) != len(strides):
        raise pickle.UnpicklingError("a tensor is described in a way no torch version writes")
    if storage.dtype in OTHER_SIZES:
        return _OtherTensor()
    return TensorRef(storage=storage, offset=offset, shape=sizes, stride=strides)


def _first(data: object, *_: object) -> object:
    return data


def _rebuild_from_type(function: object, _kind: object, arguments: object, *_: object) -> object:
    """Return a tensor or parameter that has attributes, without these."""
    if not isinstance(function, _StandIn) or not isinstance(arguments, tuple):
        return _OtherTensor()
    return function(*arguments)


def _numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > DIMENSIONS:
        raise pickle.UnpicklingError("a tensor's sizes are no short list")
    if not all(isinstance(item, int) and abs(item) < 1 << 62 for item in value):
        raise pickle.UnpicklingError("a tensor's sizes are not whole numbers")
    return tuple(value)


class _StandIn:
    """A function that a pickle may call but, unlike a plain function, may not set attributes of."""

    __slots__ = ("call",)
    call: Callable[..., object]

    def __init__(self, call: Callable[..., object]) -> None:
        object.__setattr__(self, "call", call)

    def __call__(self, *args: object) -> object:
        if len(args) > DIMENSIONS:
            raise pickle.UnpicklingError(f"a function of torch is called with {len(args)} arguments")
        return self.call(*args)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a pickle tried to set `{shown(name)}` of a function")


class _Ordered(OrderedDict[Any, Any]):
    """An ordered dictionary that drops the attributes a file gives it: one could take the place of `items`."""

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


class _Inert(pickle.Unpickler):
    """An unpickler whose every global is a stand-in."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.globals: dict[str, None] = {}
        self._stubs: dict[str, type[Stub]] = {}
        self.storages: list[StorageRef] = []
        copies = self._copies = _Copies(_FEW + len(data) // 4)

        def ordered(items: object = ()) -> _Ordered:
            if not isinstance(items, tuple | list):
                raise pickle.UnpicklingError("an ordered dictionary is made of something other than pairs")
            copies.take(len(items))
            # the hash of a tuple is computed anew each time, and is as long as what the tuple unfolds to
            if any(not isinstance(pair, tuple | list) or isinstance(pair[0], tuple) for pair in items):
                raise pickle.UnpicklingError("an ordered dictionary has something other than names for keys")
            return _Ordered(items)

        self._known: dict[str, Callable[..., object]] = {
            "collections.OrderedDict": _StandIn(ordered),
            "torch.Size": _StandIn(_numbers),
            "torch._utils._rebuild_tensor": _StandIn(_rebuild_tensor),
            "torch._utils._rebuild_tensor_v2": _StandIn(_rebuild_tensor),
            "torch._utils._rebuild_parameter": _StandIn(_first),
            "torch._utils._rebuild_parameter_with_state": _StandIn(_first),
            "torch._tensor._rebuild_from_type_v2": _StandIn(_rebuild_from_type),
            "torch.serialization._get_layout": _StandIn(_first),
        }

    def find_class(self, module: str, name: str) -> Any:
        qualified = printable(f"{module}.{name}")
        self.globals.setdefault(qualified)
        if len(module) + len(name) > _LONGEST:
            raise pickle.UnpicklingError(f"a name of {len(module) + len(name)} letters")
        if known := self._known.get(qualified):
            return known
        if module in {"torch", "torch.storage"} and name in STORAGES:
            return StorageKind(STORAGES[name])
        if module in {"torch", "torch.storage"} and name in _OTHER_STORAGES:
            return StorageKind(_OTHER_STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return name
        if qualified not in self._stubs:
            self._stubs[qualified] = type(name, (Stub,), {"_name": qualified, "_copies": self._copies})
        return self._stubs[qualified]

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            # the class of a pickled module, and its source, before torch 1.6
            case ("module", type() as kind, _, _):
                return kind
            # files of before 2018 add a view of the storage, here (key, offset, size)
            case ("storage", StorageKind(), str(key), str(), int(), (str(), int(), int())):
                raise pickle.UnpicklingError(f"storage `{shown(key)}` is a view of another, as before torch 0.4")
            case ("storage", StorageKind(dtype), str(key), str(), int(elements), *_) if 0 <= elements < 1 << 62:
                self.storages.append(StorageRef(key=key, dtype=dtype, elements=elements))
                return self.storages[-1]
        raise pickle.UnpicklingError(f"unknown kind of external data: {shown(pid)}")


_DTYPES = frozenset(STORAGES.values())
_FEW = 1 << 16
"""So many values every file may have copied."""
_LONGEST = 300
"""Letters of the longest name of a class."""
_LISTED = 20
"""Hostile names that an error lists."""
# A broken or crafted stream can raise nearly anything; all of it means the same to the caller.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(MemoryError, RuntimeError, ImportError, SystemError),
)


def printable(text: str) -> str:
    """Return a short text for one out of a file, safe for any terminal."""
    short = text[:_LONGEST]
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpickled:
    """What a pickle holds: its value (data and stubs only) and every global it names."""

    value: object
    globals: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What became of one pickle, whatever it was: its value, or why there is none."""

    value: object
    globals: tuple[str, ...]
    hostile: tuple[str, ...]
    failure: str | None
    storages: tuple[StorageRef, ...] = ()
    """Every storage it speaks of."""


def attempt(stream: IO[bytes], size: int) -> Attempt:
    """Decode one pickle from where `stream` stands without running anything it names; never raises for its content.

    Args:
        stream: the file, left after the pickle.
        size: bytes of the whole file, which bound what decoding may cost.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in the text strings of a damaged pickle
        return _attempt(stream, size)


def _attempt(stream: IO[bytes], size: int) -> Attempt:
    begin = stream.tell()
    seen = walk(stream, size)
    names, value, failure = {printable(name) for name in seen.globals}, None, seen.failure
    storages: list[StorageRef] = []
    if failure is None:
        stream.seek(begin)
        reader = _Inert(stream.read(seen.end - begin))
        try:
            value = reader.load()
        except _BROKEN as error:
            failure = f"{type(error).__name__}: {error}"
        names |= reader.globals.keys()
        storages = reader.storages
        stream.seek(seen.end)
    hostile = tuple(sorted(name for name in names if is_hostile(name)))
    return Attempt(
        value=value,
        globals=tuple(sorted(names)),
        hostile=hostile,
        failure=None if failure is None else printable(failure),
        storages=tuple(storages),
    )


def accept(made: Attempt, path: Path) -> Unpickled:
    """Return what a pickle holds, if it is clean.

    Raises:
        CheckpointError: it names a hostile global (all are listed), or cannot be decoded.
    """
    if made.hostile:
        names = ", ".join(f"`{name}`" for name in made.hostile[:_LISTED])
        more = f" and {len(made.hostile) - _LISTED} more" if len(made.hostile) > _LISTED else ""
        raise CheckpointError(
            f"`{path}` is refused: its pickle names {names}{more}",
            "no checkpoint needs these; nothing was executed. Get the file again from a source you trust",
        )
    if made.failure is not None:
        raise CheckpointError(
            f"`{path}` cannot be decoded: {made.failure}",
            "the file is damaged or is no torch checkpoint; copy it again and compare sizes",
        )
    return Unpickled(value=made.value, globals=made.globals)


def unpickle(data: bytes, path: Path, size: int | None = None) -> Unpickled:
    """Decode one pickle, found in the file `path` of `size` bytes (default: it is the whole file).

    Raises:
        CheckpointError: the pickle names a hostile global (all are listed), or cannot be decoded.
    """
    return accept(attempt(io.BytesIO(data), len(data) if size is None else size), path)


INDEX_FACTOR = 16
"""An index is nothing but small objects, an opcode for every two bytes: it may cost that much more than its length."""


def read_pickle(path: Path) -> Unpickled:
    """Decode a file that is one bare pickle, such as the index of PyTorch DCP.

    Raises:
        CheckpointError: no such file, or the pickle is hostile or damaged.
    """
    with open_file(path) as file:
        data = file.read()
    return unpickle(data, path, len(data) * INDEX_FACTOR)


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading, if it is one: a pipe would keep the reader waiting.

    Raises:
        CheckpointError: it does not exist, may not be read, or is no regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"`{path}` is no regular file", "give a file, or the folder of a checkpoint")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read: {error}", "check that it exists and that you may read it"
        ) from error
