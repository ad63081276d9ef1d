"""A corpus of hostile files: nothing in them runs, writes, or takes more memory than the file deserves."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpeval.checkpoint.container import attempt_torch_file, open_torch_file
from mpeval.checkpoint.scan import scan_checkpoint, scan_file
from mpeval.checkpoint.unpickle import Stub, read_pickle
from mpeval.errors import CheckpointError, shown

CANARY = "canary"
CALLS: dict[str, tuple[str, str, bytes]] = {
    "os.system": ("os", "system", b"V{touch}\n\x85"),
    "posix.system": ("posix", "system", b"V{touch}\n\x85"),
    "nt.system": ("nt", "system", b"V{touch}\n\x85"),
    "builtins.exec": ("builtins", "exec", b"V{python}\n\x85"),
    "builtins.eval": ("builtins", "eval", b"V{python}\n\x85"),
    "__builtin__.eval": ("__builtin__", "eval", b"V{python}\n\x85"),
    "builtins.compile": ("builtins", "compile", b"V{python}\nVx\nVexec\n\x87"),
    "builtins.getattr": ("builtins", "getattr", b"Nm\n\x86"),
    "builtins.__import__": ("builtins", "__import__", b"Vos\n\x85"),
    "builtins.open": ("builtins", "open", b"V{canary}\nVw\n\x86"),
    "io.open": ("io", "open", b"V{canary}\nVw\n\x86"),
    "pathlib-free.subprocess.Popen": ("subprocess", "Popen", b"](Vtouch\nV{canary}\ne\x85"),
    "subprocess.check_output": ("subprocess", "check_output", b"](Vtouch\nV{canary}\ne\x85"),
    "runpy.run_path": ("runpy", "run_path", b"V{canary}\n\x85"),
    "runpy._run_code": ("runpy", "_run_code", b"V{python}\n}\x86"),
    "ctypes.CDLL": ("ctypes", "CDLL", b"Vlibc.so.6\n\x85"),
    "importlib.import_module": ("importlib", "import_module", b"Vos\n\x85"),
    "pickle.loads": ("pickle", "loads", b"C\x02N.\x85"),
    "_pickle.loads": ("_pickle", "loads", b"C\x02N.\x85"),
    "shutil.rmtree": ("shutil", "rmtree", b"V{canary}\n\x85"),
    "torch.load": ("torch", "load", b"V{canary}\n\x85"),
    "torch.hub.load": ("torch.hub", "load", b"V{canary}\n\x85"),
    "numpy.load": ("numpy", "load", b"V{canary}\n\x85"),
    "operator.methodcaller": ("operator", "methodcaller", b"Vsystem\n\x85"),
    "functools.partial": ("functools", "partial", b"N\x85"),
    "sys.setrecursionlimit": ("sys", "setrecursionlimit", b"K\x05\x85"),
    "types.CodeType": ("types", "CodeType", b")"),
    "webbrowser.open": ("webbrowser", "open", b"V{canary}\n\x85"),
}
"""Name -> (module, attribute, opcodes that push the arguments)."""


def _call(name: str, canary: Path, stack: bool = False) -> bytes:
    """Return a pickle that calls `name`; with `stack` it is named by strings, as protocol 4 does."""
    module, attribute, pushed = CALLS[name]
    arguments = (
        pushed.replace(b"{touch}", f"touch {canary}".encode())
        .replace(b"{python}", f"open({str(canary)!r}, 'w')".encode())
        .replace(b"{canary}", str(canary).encode())
    )
    if stack:
        return b"\x80\x04" + _text(module) + _text(attribute) + b"\x93" + arguments + b"R."
    return b"\x80\x02" + f"c{module}\n{attribute}\n".encode() + arguments + b"R."


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _zip(path: Path, data: bytes, **entries: bytes) -> Path:
    """Write a torch zip file whose pickle is `data`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def _old(path: Path, data: bytes) -> Path:
    """Write a file of the container before torch 1.6 whose object is the pickle `data`."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    path.write_bytes(b"".join(parts) + data + pickle.dumps([], 2))
    return path


def _bare(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


OPENERS: dict[str, tuple[Callable[..., Path], Callable[[Path], Any]]] = {
    "zip": (_zip, open_torch_file),
    "old": (_old, open_torch_file),
    "bare": (_bare, read_pickle),
}


@pytest.mark.parametrize("container", OPENERS)
@pytest.mark.parametrize("stack", [False, True], ids=["global", "stack-global"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_named_and_not_made(tmp_path: Path, name: str, stack: bool, container: str) -> None:
    write, read = OPENERS[container]
    canary = tmp_path / CANARY
    path = write(tmp_path / "model.pt", _call(name, canary, stack))
    qualified = ".".join(CALLS[name][:2])
    with pytest.raises(CheckpointError, match=rf"refused: its pickle names .*`{qualified}`"):
        read(path)
    assert scan_file(path).hostile == (qualified,)
    assert not canary.exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.pt"]


def _nested(canary: Path) -> dict[str, bytes]:
    inner = _call("posix.system", canary)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", inner)
    latin = pickle.dumps({"state": inner}, 2)
    packed, newer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", inner)
    with zipfile.ZipFile(newer, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data.pkl", _call("posix.system", canary, stack=True))
    old = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + inner
    return {
        "compressed torch file": pickle.dumps({"state": packed.getvalue()}, 4),
        "torch file of protocol 4": pickle.dumps({"state": newer.getvalue()}, 4),
        "torch file of before 1.6": pickle.dumps({"state": old}, 4),
        "the second of two": pickle.dumps({"state": b"N." + inner}, 4),
        "bytes": pickle.dumps({"state": inner}, 4),
        "bytes of protocol 2": latin,
        "BytesIO": pickle.dumps({"state": io.BytesIO(inner)}, 4),
        "torch file": pickle.dumps({"state": io.BytesIO(file.getvalue())}, 4),
        "twice": pickle.dumps(pickle.dumps(io.BytesIO(inner), 4), 4),
        "protocol 0": pickle.dumps({"state": b"cposix\nsystem\n(S'true'\ntR."}, 4),
        "bytearray": pickle.dumps({"state": bytearray(inner)}, 5),
    }


@pytest.mark.parametrize("kind", list(_nested(Path())))
def test_a_pickle_inside_a_pickle_is_looked_into(tmp_path: Path, kind: str) -> None:
    path = _zip(tmp_path / "model.pt", _nested(tmp_path / CANARY)[kind])
    with pytest.raises(CheckpointError, match=r"names .*`posix\.system`"):
        open_torch_file(path)
    assert not (tmp_path / CANARY).exists()


def test_what_follows_a_broken_opcode_or_a_stop_is_still_not_run(tmp_path: Path) -> None:
    canary = tmp_path / CANARY
    call = _call("posix.system", canary)
    for data in (b"\x80\x02N." + call, call[:-1], call[:-1] + b"\xff.", call[:-2] + b"0" * 50 + b"."):
        path = _zip(tmp_path / "model.pt", data)
        found = attempt_torch_file(path)
        assert found.value is None
        assert found.hostile == ("posix.system",) or data.startswith(b"\x80\x02N.")
    assert not canary.exists()


class _Setter:
    """Pickles as a call of a torch or numpy function, or as a state for one of their classes."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.made = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize(
    "value",
    [
        _Setter(np.ndarray, ((10**9,),)),
        _Setter(np.zeros, ((10**9,),)),
        _Setter(np.empty, ((10**9,),)),
        _Setter(torch.nn.Linear, (10**6, 10**6)),
        _Setter(torch.Tensor, (), {"__class__": torch.nn.Module}),
        _Setter(torch.nn.Linear, (1, 1), {"__setstate__": torch.nn.Linear, "forward": np.zeros}),
        _Setter(torch.nn.Module, (), ({"__dict__": {}}, {"__slots__": 5})),
        _Setter(bytearray, (10**10,)),
        _Setter(list, (range(10**10),)),
        _Setter(frozenset, (range(10**10),)),
    ],
)
def test_classes_of_torch_and_numpy_stay_inert(tmp_path: Path, value: Any) -> None:
    path = _zip(tmp_path / "model.pt", pickle.dumps({"x": value}, 2))
    found = open_torch_file(path).value
    assert set(found) == {"x"}
    assert type(found["x"]).__mro__[1].__name__ == "Stub"


def _memo_tuples() -> bytes:
    """Return a pickle of a tuple of tuples that unfolds to 2**60 leaves."""
    data = b"\x80\x02N\x85q\x00"
    for level in range(60):
        data += bytes([*b"h", level, *b"h", level, 0x86, *b"q", level + 1])
    return data + b"."


def _wide(letters: int) -> bytes:
    """Return the opcode that pushes a text which takes four bytes a letter for one of them."""
    text = b"a" * letters + "\U0001f600".encode()
    return b"X" + struct.pack("<I", len(text)) + text


_NAMESPACE = b"cargparse\nNamespace\n"
_ORDERED = b"ccollections\nOrderedDict\n"
_MANY = b"".join(b"V%d\nN" % number for number in range(30_000))
COPIES: dict[str, tuple[bytes, str]] = {
    "long arguments": (
        b"\x80\x02(" + b"N" * 60_000 + b"tq\x000" + _NAMESPACE + b"q\x010(" + b"h\x01h\x00R" * 40_000 + b"l.",
        "copied over and over",
    ),
    "large states": (
        b"\x80\x02}q\x00(" + _MANY + b"u0" + _NAMESPACE + b"q\x010(" + b"h\x01)\x81h\x00b" * 30_000 + b"l.",
        "copied over and over",
    ),
    "large states of dictionaries": (
        b"\x80\x02}q\x00(" + _MANY + b"u0" + _ORDERED + b"q\x010(" + b"h\x01)Rh\x00b" * 30_000 + b"l.",
        "read",
    ),
    "arguments of a function": (
        b"\x80\x02("
        + b"N" * 60_000
        + b"tq\x000ctorch._utils\n_rebuild_parameter\nq\x010("
        + b"h\x01h\x00R" * 9000
        + b"l.",
        "60000 arguments",
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_long_value_named_often_is_not_copied_as_often(tmp_path: Path, name: str) -> None:
    data, expected = COPIES[name]
    path = _zip(tmp_path / "model.pt", data)
    said, used = _peak(path)
    assert expected in said
    assert used < 2 * path.stat().st_size + (64 << 20)


def _attribute(name: bytes, value: bytes, maker: bytes = _NAMESPACE + b")\x81") -> bytes:
    """Return a pickle of an object whose state sets one attribute; the object itself is in memo slot 0."""
    return b"\x80\x02" + maker + b"q\x00}V" + name + b"\n" + value + b"sb."


@pytest.mark.parametrize("name", [b"items", b"values", b"keys", b"update", b"__setstate__", b"__class__"])
def test_an_attribute_does_not_take_the_place_of_a_method(tmp_path: Path, name: bytes) -> None:
    """State that a file gives an ordered dictionary becomes its attributes, which come before its methods."""
    path = _zip(tmp_path / "model.pt", _attribute(name, _NAMESPACE, _ORDERED + b")R"))
    assert open_torch_file(path).value == {}


@pytest.mark.parametrize("name", [b"qualified", b"_name", b"__repr__", b"__class__", b"_copies", b"stub_args"])
def test_an_object_that_describes_itself_is_shown_by_its_class(tmp_path: Path, name: bytes) -> None:
    found = open_torch_file(_zip(tmp_path / "model.pt", _attribute(name, b"h\x00"))).value
    assert isinstance(found, Stub)
    assert (repr(found), shown(found)) == ("<argparse.Namespace>", "a argparse.Namespace")
    assert shown(type(found)) == "a argparse.Namespace"


def test_names_are_shown_short_and_without_control_characters(tmp_path: Path) -> None:
    names = [b"\x1b[31mred\n", b"\xed\xa0\x80", b"x" * 5000, *(b"n%d" % number for number in range(50))]
    data = b"".join(b"\x8c\x02osX" + struct.pack("<I", len(name)) + name + b"\x930" for name in names)
    with pytest.raises(CheckpointError, match="refused") as raised:
        open_torch_file(_zip(tmp_path / "model.pt", b"\x80\x04" + data + b"N."))
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 7000
    assert all(name.isprintable() for name in scan_file(tmp_path / "model.pt").globals)


def test_each_claim_about_a_storage_is_checked(tmp_path: Path) -> None:
    """The first reference to a storage is right, the second claims a longer one of the same name."""
    honest, false = (_tensor((n,), (1,), 0, n)[2:-1] for n in (4, 40))
    path = _zip(
        tmp_path / "model.pt", b"\x80\x02(" + honest + false + b"l.", **{"data/0": bytes(16), "data/1": bytes(400)}
    )
    with pytest.raises(CheckpointError, match="too short"):
        open_torch_file(path)


def test_overlapping_zip_entries_are_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.pt", pickle.dumps({}, 2), **{"data/0": bytes(64), "data/1": bytes(64)})
    content = path.read_bytes()
    first, second = content.index(b"archive/data/0"), content.index(b"archive/data/1")
    directory = content.rindex(b"archive/data/1") - 46
    assert content[directory : directory + 4] == b"PK\x01\x02"
    for place in (first - 30, first - 30 + 8, second - 40):
        path.write_bytes(content[: directory + 42] + struct.pack("<I", place) + content[directory + 46 :])
        with pytest.raises(CheckpointError, match="overlaps what follows"):
            open_torch_file(path)


def test_a_pickle_before_a_zip_file_is_what_the_file_is(tmp_path: Path) -> None:
    """Zip readers look at the end of a file, torch at its beginning, and there is a call."""
    path = _zip(tmp_path / "model.pt", pickle.dumps({}, 2))
    path.write_bytes(_call("posix.system", tmp_path / CANARY) + path.read_bytes())
    with pytest.raises(CheckpointError, match="do not begin as one"):
        open_torch_file(path)
    assert scan_file(path).hostile == ("posix.system",)


@pytest.mark.parametrize("read", [open_torch_file, read_pickle, scan_file])
def test_what_is_no_file_is_an_error_and_nothing_waits_for_it(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(CheckpointError, match=r"no regular file|cannot be read"):
            read(tmp_path / name)


def _refused_files(folder: Path) -> dict[str, Path]:
    """Write files that are refused for their container, each with a call in some pickle of them."""
    call, clean = _call("posix.system", folder / CANARY), pickle.dumps({}, 2)
    made = {"other pickle": _zip(folder / "other.pt", clean, **{"constants.pkl": call})}
    made["path"] = _zip(folder / "path.pt", call, **{"../x": b""})
    made["cut"] = _zip(folder / "cut.pt", call, **{"data/0": bytes(500)})
    made["cut"].write_bytes(made["cut"].read_bytes()[:500])
    made["checksum"] = _zip(folder / "checksum.pt", call)
    made["checksum"].write_bytes(made["checksum"].read_bytes().replace(b"Vtouch", b"Vtuoch"))
    for name, method in (("compressed", zipfile.ZIP_DEFLATED), ("two", zipfile.ZIP_STORED)):
        made[name] = folder / f"{name}.pt"
        with zipfile.ZipFile(made[name], "w", method) as archive:
            archive.writestr("a/data.pkl", call)
            archive.writestr("b/data.pkl" if name == "two" else "a/version", clean)
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    for number in range(1, 5):
        made[f"old {number}"] = _bare(
            folder / f"old{number}.pt", b"".join([*parts[:number], call, *parts[number + 1 :]])
        )
    made["second pickle"] = _bare(folder / "second.pkl", clean + call)
    return made


def test_a_scan_names_what_is_in_files_that_are_refused(tmp_path: Path) -> None:
    for kind, path in _refused_files(tmp_path).items():
        assert scan_file(path).hostile == ("posix.system",), kind
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_tensors_that_are_no_weights_do_not_hide_the_weights(tmp_path: Path, old: bool) -> None:
    weight, marked = torch.nn.Parameter(torch.arange(3.0)), torch.ones(2)
    weight.tensor_model_parallel, marked.kept = True, 1  # type: ignore[attr-defined]
    others = {
        "complex": torch.ones(3, dtype=torch.complex64),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.ones(5, dtype=torch.uint16),
        "bytes": torch.ones(3).untyped_storage(),
        "sparse": torch.eye(3).to_sparse(),
        "generator": torch.Generator(),
    }
    path = tmp_path / "model.pt"
    torch.save(
        others | {"weight": weight, "marked": marked, "last": torch.ones(4)},
        path,
        _use_new_zipfile_serialization=not old,
    )
    value = open_torch_file(path).value
    for name, expected in (("weight", weight.detach()), ("marked", torch.ones(2)), ("last", torch.ones(4))):
        read = torch.empty(expected.shape)
        value[name].copy_into(read, [(0, len(expected))])
        assert torch.equal(read, expected)
    assert all(isinstance(value[name], Stub) for name in ("complex", "float8", "unsigned", "sparse", "generator"))


def test_a_small_expanded_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.tensor([[1.0], [2.0]]).expand(2, 5), path)
    read = torch.empty(2, 5)
    open_torch_file(path).value.copy_into(read, [(0, 2), (0, 5)])
    assert read.tolist() == [[1.0] * 5, [2.0] * 5]


def _memo_dicts() -> bytes:
    """Return the same of dictionaries, as the `model` entry of a checkpoint."""
    data = b"\x80\x02}q\x00"
    for level in range(60):
        data += b"}" + bytes([*b"q", level + 1]) + b"(Va\nh" + bytes([level]) + b"Vb\nh" + bytes([level]) + b"u0"
    return data + b"}Vmodel\nh\x3cs."


EXPENSIVE: dict[str, tuple[bytes, str]] = {
    "memo slot": (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo slot"),
    "memo slot in text": (b"N" + b"p99999999999\n.", "memo slot"),
    "memo slot far ahead": (
        b"\x80\x03B" + struct.pack("<I", 9 << 20) + bytes(9 << 20) + b"r" + struct.pack("<I", 8 << 20) + b".",
        "memo slot",
    ),
    "one wide letter": (b"\x80\x02" + _wide(15 << 20) + b"0" + _wide(15 << 20) + b".", "more text than"),
    "string longer than any": (b"\x80\x02X" + struct.pack("<I", 20 << 20) + b"a" * (20 << 20) + b".", "string of"),
    "key that unfolds": (_memo_tuples()[:-1] + b"}h\x3cNs.", "unfolds to more"),
    "member that unfolds": (b"\x80\x04\x8f(" + _memo_tuples()[2:-1] + b"\x90.", "unfolds to more"),
    "large key used often": (
        b"\x80\x02(" + b"N" * 50_000 + b"tq\x000}" + b"h\x00Ns" * 50_000 + b".",
        "keys that unfold",
    ),
    "long bytes": (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "cannot be decoded"),
    "long text": (b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.", "cannot be decoded"),
    "long bytearray": (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "cannot be decoded"),
    "frame": (b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.", "cannot be decoded"),
    "long number": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "cannot be decoded"),
    "number in text": (b"L" + b"9" * 100_000 + b"L\n.", "cannot be decoded"),
    "many empty sets": (b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.", "more opcodes than"),
    "many names": (
        b"\x80\x02(" + b"".join(b"ca\nb%d\n" % n for n in range(2000)) + b"l.",
        "globals named",
    ),
    "copies": (
        b"\x80\x02(" + b"N" * 5000 + b"lq\x000" + b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 3000 + b"l.",
        "cannot be decoded",
    ),
    "nesting": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "too deeply|cannot be decoded"),
}


def _peak(path: Path, opener: str = "open_torch_file", module: str = "container") -> tuple[str, int]:
    """Open a file in a process of its own; return what it said and how many bytes it needed more than an empty one."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from mpeval.errors import CheckpointError\n"
        f"from mpeval.checkpoint.{module} import {opener} as read\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read(Path(sys.argv[1])); said = 'read'\n"
        "except CheckpointError as error: said = error.message\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, said)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr
    used, said = done.stdout.split(" ", 1)
    return said.strip(), int(used)


@pytest.mark.parametrize("name", EXPENSIVE)
def test_a_pickle_costs_no_more_than_it_deserves(tmp_path: Path, name: str) -> None:
    data, expected = EXPENSIVE[name]
    path = _zip(tmp_path / "model.pt", data)
    said, used = _peak(path)
    with pytest.raises(CheckpointError, match=expected):
        raise CheckpointError(said, "")
    assert used < 2 * path.stat().st_size + (64 << 20)


def test_a_large_index_is_read_and_an_expensive_one_is_not(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import MetadataIndex

    large = {MetadataIndex(f"layers.{n}.weight", torch.Size([n, 0])): n for n in range(60_000)}
    path = _bare(tmp_path / ".metadata", pickle.dumps(large))
    assert len(read_pickle(path).value) == len(large)
    with pytest.raises(CheckpointError, match="more opcodes than"):
        read_pickle(_bare(path, b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l."))


@pytest.mark.parametrize("name", ["tuples", "dicts"])
def test_shared_parts_are_not_unfolded(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mp_rank_00"
    folder.mkdir()
    _zip(folder / "model_optim_rng.pt", _memo_tuples() if name == "tuples" else _memo_dicts())
    said, used = _peak(tmp_path, "open_checkpoint", "open")
    assert "holds no dictionary" in said or "over and over" in said or "unfolds" in said
    assert used < 400 << 20  # torch itself is imported on the way; the entries are bounded


def _tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, elements: int) -> bytes:
    """Return the pickle of one float tensor with any metadata."""

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\n" + number(elements) + b"tQ"
    rest = number(offset) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


HUGE = 1 << 61
CRAFTED = {
    "huge with stride 0": _tensor((HUGE,), (0,), 0, 4),
    "large with stride 0": _tensor((1 << 20, 1 << 12), (0, 0), 0, 4),
    "negative size": _tensor((-1, 4), (4, 1), 0, 4),
    "negative stride": _tensor((2, 2), (-1, 1), 3, 4),
    "negative offset": _tensor((2,), (1,), -1, 4),
    "offset outside": _tensor((2,), (1,), 3, 4),
    "stride outside": _tensor((2, 2), (HUGE, 1), 0, 4),
    "more elements than bytes": _tensor((8,), (1,), 0, 8),
    "huge storage": _tensor((1,), (1,), 0, HUGE),
    "negative storage": _tensor((1,), (1,), 0, -4),
    "seventeen dimensions": _tensor((1,) * 17, (1,) * 17, 0, 4),
    "sizes and strides of unequal length": _tensor((2, 2), (1,), 0, 4),
    "overflowing product": _tensor((1 << 60, 1 << 60), (1, 1), 0, 4),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_tensors_are_refused(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "model.pt", CRAFTED[name], **{"data/0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"outside its storage|too short|describes larger|cannot be decoded"):
        open_torch_file(path)


def test_many_views_of_the_same_bytes_are_refused(tmp_path: Path) -> None:
    whole = torch.zeros(1 << 18)
    path = tmp_path / "model.pt"
    torch.save([whole.view(1, -1) for _ in range(50)], path)
    with pytest.raises(CheckpointError, match="describes larger tensors than it holds"):
        open_torch_file(path)


@pytest.mark.parametrize("entry", ["../evil", "archive/../../evil", "/etc/evil", "archive\\..\\evil"])
def test_zip_entries_with_paths_are_refused(tmp_path: Path, entry: str) -> None:
    path = _zip(tmp_path / "model.pt", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, b"x")
    with pytest.raises(CheckpointError, match="zip entry with the path"):
        open_torch_file(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.pt"]


def test_the_same_zip_entry_twice_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.pt", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", _call("posix.system", tmp_path / CANARY))
    with pytest.raises(CheckpointError, match="twice"):
        open_torch_file(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (100 << 20) + b"N.")
    assert path.stat().st_size < 1 << 20
    said, used = _peak(path)
    assert "`archive/data.pkl` compressed" in said
    assert used < 64 << 20


def test_a_huge_zip_directory_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"archive/{'x' * 900}{number}", b"")
    said, used = _peak(path)
    assert "zip directory of" in said
    assert used < 2 * path.stat().st_size + (64 << 20)


@pytest.mark.parametrize("size", [0, 1, 10, 100])
@pytest.mark.parametrize("head", [b"", b"PK\x03\x04", pickle.dumps(0x1950A86A20F9469CFC6C, 2)])
def test_noise_is_an_error(tmp_path: Path, head: bytes, size: int) -> None:
    path = _bare(tmp_path / "model.pt", head + os.urandom(size))
    with pytest.raises(CheckpointError):
        open_torch_file(path)
    assert scan_file(path).failure


def test_a_folder_is_scanned_file_by_file(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "good.pt")
    _zip(tmp_path / "bad.pt", _call("os.system", tmp_path / CANARY))
    (tmp_path / "notes.txt").write_text("no pickle")
    good = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "payload.distcp").write_bytes(good + good + (tmp_path / "bad.pt").read_bytes())
    found = {scan.path.name: scan for scan in scan_checkpoint(tmp_path)}
    assert set(found) == {"good.pt", "bad.pt", "payload.distcp"}
    assert found["good.pt"].hostile == ()
    assert "torch._utils._rebuild_tensor_v2" in found["good.pt"].globals
    assert found["bad.pt"].hostile == found["payload.distcp"].hostile == ("os.system",)
    assert not (tmp_path / CANARY).exists()


def test_what_training_leaves_in_a_file_is_not_refused(tmp_path: Path) -> None:
    import argparse
    import enum
    import pathlib
    import random
    import signal
    from collections import defaultdict

    content = {
        "args": argparse.Namespace(dtype=torch.float32, path=pathlib.PosixPath("x"), exit=signal.Signals.SIGTERM),
        "rng": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
        "numpy": [np.arange(5, dtype=np.uint32), np.float64(3.0), np.dtype("int32")],
        "defaults": defaultdict(list, {1: [2]}),
        "noise": io.BytesIO(b"\x80\x02N."),
        "size": torch.Size([3, 4]),
        "range": range(4),
        "set": {1, 2},
        "flag": enum.Enum,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for old in (False, True):
        path = tmp_path / f"{old}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        assert set(open_torch_file(path).value) == set(content)
        assert scan_file(path).hostile == ()
