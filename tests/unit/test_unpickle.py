"""Nothing in a pickle is executed: hostile names are refused, all of them listed, harmless ones become stubs."""

from __future__ import annotations

import argparse
import contextlib
import enum
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.stored import StoredTensor
from mpeval.checkpoint.unpickle import HARMLESS_BUILTINS, Stub, is_hostile, unpickle
from mpeval.checkpoint.unpickle import _rebuild_tensor as stand_in
from mpeval.errors import CheckpointError

HERE = Path("file.pt")
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (self.function, self.arguments, self.state) if self.state is not None else (self.function, self.arguments)
        )


def by_name(module: str, name: str, argument: str) -> bytes:
    """Return a text pickle (protocol 0) that calls `module.name(argument)`."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def by_stack(module: str, name: str, argument: str) -> bytes:
    """Return a protocol-4 pickle that takes the name from the stack and calls it."""

    def text(value: str) -> bytes:
        data = value.encode()
        return b"\x8c" + struct.pack("<B", len(data)) + data

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def attacks(marker: Path) -> dict[str, tuple[Any, str]]:
    """Return objects whose unpickling would create `marker`, each with the name that must be refused."""
    shell = f"touch {marker}"
    source = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": (Call(os.system, shell), f"{os.system.__module__}.system"),
        "eval": (Call(eval, source), "builtins.eval"),
        "exec": (Call(exec, source), "builtins.exec"),
        "open": (Call(open, str(marker), "w"), "io.open"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "builtins.getattr"),
        "import": (Call(__import__, "os"), "builtins.__import__"),
        "popen": (Call(subprocess.Popen, ["touch", str(marker)]), "subprocess.Popen"),
        "in args": ({"model": {}, "args": argparse.Namespace(heads=Call(eval, source))}, "builtins.eval"),
        "in a tuple of a list": ([(1, [Call(os.system, shell)])], f"{os.system.__module__}.system"),
        "as a key": ({Call(eval, "'key'"): 1, "more": Call(exec, source)}, "builtins.exec"),
        "in a state": (Call(OrderedDict, state={"x": Call(eval, source)}), "builtins.eval"),
        "in a reduce": (Call(SimpleNamespace, state={"x": Call(exec, source)}), "builtins.exec"),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", attacks(Path("unused")))
def test_an_attack_is_refused_by_name_and_nothing_runs(name: str, protocol: int, marker: Path) -> None:
    value, refused = attacks(marker)[name]
    with pytest.raises(CheckpointError) as raised:
        unpickle(pickle.dumps(value, protocol=protocol, fix_imports=False), HERE)
    assert f"`{refused}`" in raised.value.message
    assert "nothing was executed" in raised.value.hint
    assert not marker.exists()


def test_these_attacks_do_work_on_an_ordinary_unpickler(marker: Path) -> None:
    for name in ("os.system", "eval", "exec", "in args"):
        value, _ = attacks(marker)[name]
        pickle.loads(pickle.dumps(value))
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("made", [by_name, by_stack])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("os.path", "join"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "compile"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("builtins", "globals"),
        ("__builtin__", "eval"),
        ("subprocess", "check_output"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("ctypes", "CDLL"),
        ("socket", "socket"),
        ("shutil", "rmtree"),
        ("pickle", "loads"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.utils.cpp_extension", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("webbrowser", "open"),
        ("pip._internal", "main"),
    ],
)
def test_a_hostile_name_is_refused_however_it_is_written(
    made: Callable[[str, str, str], bytes], module: str, name: str, marker: Path
) -> None:
    with pytest.raises(CheckpointError) as raised:
        unpickle(made(module, name, f"touch {marker}"), HERE)
    assert f"`{module}.{name}`" in raised.value.message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "os"])
def test_a_dotted_name_below_a_harmless_module_gives_no_way_in(name: str, marker: Path) -> None:
    data = by_stack("collections", f"abc.sys.modules.{name}", f"touch {marker}")
    value = unpickle(data, HERE).value
    assert isinstance(value, Stub)
    assert not marker.exists()


def test_every_hostile_name_of_a_file_is_listed() -> None:
    value = [Call(os.system, "true"), Call(eval, "1"), Call(subprocess.Popen, ["true"]), OrderedDict()]
    with pytest.raises(CheckpointError) as raised:
        unpickle(pickle.dumps(value), HERE)
    for name in (f"{os.system.__module__}.system", "builtins.eval", "subprocess.Popen"):
        assert f"`{name}`" in raised.value.message
    assert "OrderedDict" not in raised.value.message


def test_a_hostile_name_is_listed_even_when_the_stream_then_breaks() -> None:
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        unpickle(by_name("posix", "system", "true")[:-1] + b"(((garbage", HERE)


def test_a_hostile_name_that_is_never_called_is_refused_too() -> None:
    with pytest.raises(CheckpointError, match=r"builtins\.eval"):
        unpickle(pickle.dumps({"model": {}, "unused": eval}), HERE)


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_attack_inside_a_torch_file_is_refused(protocol: int, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = {"model": {"weight": torch.zeros(3)}, "args": argparse.Namespace(x=Call(os.system, f"touch {marker}"))}
    torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"is refused: its pickle names `posix\.system`"):
        open_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", sorted(HARMLESS_BUILTINS))
def test_plain_types_are_not_hostile(name: str) -> None:
    assert not is_hostile(f"builtins.{name}")


@pytest.mark.parametrize(
    "name",
    [
        *("argparse.Namespace", "megatron.optimizer.DynamicGradScaler", "numpy.core.multiarray._reconstruct"),
        *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "osmosis.Thing", "systems.engine"),
    ],
)
def test_names_of_ordinary_checkpoints_are_not_hostile(name: str) -> None:
    assert not is_hostile(name)


# ---- what checkpoints do hold ----


class Colour(enum.Enum):
    RED = 1


class Flag(enum.IntFlag):
    UP = 4


class Scaler:
    """A class of the training program, which this reader must not import."""

    constructed = 0

    def __init__(self) -> None:
        type(self).constructed += 1
        self.scale = 2.0


class Slotted:
    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 5


class Named(dict[str, int]):
    """A dictionary of its own kind."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_arguments_of_a_run_are_readable(protocol: int) -> None:
    args = argparse.Namespace(num_layers=2, hidden_size=32, lr=1.5e-4, data=["a", "b"], kind=None, swiglu=False)
    value = unpickle(pickle.dumps({"args": args}, protocol=protocol), HERE).value
    assert isinstance(value, dict)
    assert isinstance(value["args"], Stub)
    found = {key: item for key, item in vars(value["args"]).items() if not key.startswith("stub_")}
    assert found == vars(args)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_that_is_not_known_becomes_a_stub_and_is_not_constructed(protocol: int) -> None:
    data = pickle.dumps({"scaler": Scaler(), "after": 7}, protocol=protocol)
    before = Scaler.constructed
    value = unpickle(data, HERE).value
    assert isinstance(value, dict)
    assert isinstance(value["scaler"], Stub)
    assert value["scaler"].scale == 2.0  # type: ignore[attr-defined]
    assert repr(value["scaler"]) == (f"<{__name__}.Scaler>" if protocol > 1 else "<copy_reg._reconstructor>")
    assert value["after"] == 7
    assert Scaler.constructed == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [Colour.RED, Flag.UP], ids=["enum", "flag"])
def test_enumerations_are_stubs_that_keep_their_value(value: enum.Enum, protocol: int) -> None:
    read = unpickle(pickle.dumps([value, "after"], protocol=protocol), HERE).value
    assert isinstance(read, list)
    assert isinstance(read[0], Stub)
    assert vars(read[0])["stub_args"] == (value.value,)
    assert read[1] == "after"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.float64(1.5),
        np.random.RandomState(3).get_state(),
        np.asfortranarray(np.ones((2, 2))),
    ],
    ids=["array", "scalar", "random state", "fortran order"],
)
def test_numpy_values_are_tolerated(value: Any, protocol: int) -> None:
    read = unpickle(pickle.dumps({"noise": value, "after": [1, 2]}, protocol=protocol), HERE).value
    assert isinstance(read, dict)
    assert read["after"] == [1, 2]


@pytest.mark.parametrize(
    "value",
    [Slotted(), Named(a=1), Path("folder/file"), frozenset([1, 2]), 3 + 4j, bytearray(b"x"), range(3), slice(1, 2)],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_tolerated(value: Any) -> None:
    read = unpickle(pickle.dumps({"noise": value, "after": 7}), HERE).value
    assert isinstance(read, dict)
    assert read["after"] == 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_read_as_they_are(protocol: int) -> None:
    value = {"a": [1, -(2**70), 2.5, True, None], "b": ("x", "\u00e9"), "c": {"d": {}}, 3: OrderedDict(z=1)}
    read = unpickle(pickle.dumps(value, protocol=protocol), HERE)
    assert read.value == value
    assert "collections.OrderedDict" in read.globals


def test_the_names_of_a_file_are_told() -> None:
    read = unpickle(pickle.dumps([argparse.Namespace(), Scaler()], protocol=2), HERE)
    assert set(read.globals) >= {"argparse.Namespace", f"{__name__}.Scaler"}


def test_parameters_and_tensors_of_a_torch_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.zeros(0), "n": Scaler()}, path)
    value = open_torch_file(path).value
    assert isinstance(value["a"], StoredTensor)
    assert value["a"].shape == (2, 3)
    assert value["b"].shape == (0,)
    assert isinstance(value["n"], Stub)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"garbage", b"\x80\x09.", b"\x80\x04", b"cos\n", b"(lp0\n", b"I1\n"),
        b"Pnonsense\n.",
        b"\x80\x02cargparse\nNamespace\n)\x81K\x01b0.",
        pickle.dumps({"x": list(range(50))})[:-20],
    ],
)
def test_a_broken_stream_is_a_checkpoint_error(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        unpickle(data, HERE)


def test_a_stream_nested_deeply_is_read_without_a_crash() -> None:
    value: Any = unpickle(b"\x80\x02" + b"(" * 20_000 + b"N" + b"t" * 20_000 + b".", HERE).value
    depth = 0
    while isinstance(value, tuple):
        depth, value = depth + 1, value[0]
    assert (depth, value) == (20_000, None)


def test_a_file_cannot_alter_the_reader_for_the_files_after_it() -> None:
    """A BUILD with slot state sets attributes; what stands in for torch's functions outlives one file."""
    before = stand_in.__defaults__, dict(vars(stand_in)), stand_in.__doc__
    try:
        for attribute, value in ((b"__defaults__", b"(K\x01K\x02t"), (b"__doc__", b"N"), (b"left_behind", b"K\x01")):
            slots = b"}X" + struct.pack("<I", len(attribute)) + attribute + value + b"s"
            with contextlib.suppress(CheckpointError):
                unpickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN" + slots + b"\x86b.", HERE)
        assert (stand_in.__defaults__, dict(vars(stand_in)), stand_in.__doc__) == before
    finally:
        stand_in.__defaults__, stand_in.__doc__ = before[0], before[2]
        vars(stand_in).clear()
