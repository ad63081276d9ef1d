"""What cannot be compared is refused, with what was found and the next thing to type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compared import LAMBADA, WIKITEXT, lambada, wikitext, write
from evaluated import change_line

from mpeval.errors import DataError, MpevalError, UsageError
from mpeval.leaderboard.versus import Options, compare_runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two runs of both tasks, `a` and `b` in the working folder."""
    monkeypatch.chdir(tmp_path)
    return tuple(write(Path(name), lambada(seed), wikitext(seed)) for seed, name in enumerate("ab"))  # type: ignore[return-value]


def refused(*paths: str, protocols: tuple[str, ...] = (), kind: type[MpevalError] = DataError) -> tuple[str, str]:
    """Compare, and return what was said."""
    with pytest.raises(kind) as raised:
        compare_runs(Options(runs=tuple(map(Path, paths)), protocols=protocols, command="x"))
    assert raised.type is kind
    return raised.value.message, raised.value.hint


def test_one_run_and_the_same_run_twice(runs: tuple[Path, Path]) -> None:
    assert refused("a", kind=UsageError)[0] == "1 run has nothing to be compared with"
    assert refused("a", "b", "a/samples.jsonl", kind=UsageError) == (
        "`a` and `a/samples.jsonl` are the same run",
        "give each run once",
    )


def test_a_path_without_samples_names_the_command_that_makes_them(runs: tuple[Path, Path]) -> None:
    assert refused("a", "c") == ("no run at `c`", "give the output folder of `mpeval evaluate`, or a `samples.jsonl`")
    (runs[1] / "samples.jsonl").unlink()
    assert refused("a", "b") == (
        "`b` holds no samples: there is no `samples.jsonl`",
        f"make them: `mpeval evaluate checkpoints/b --task {LAMBADA} --task {WIKITEXT} --output b`",
    )
    shutil.rmtree(runs[1])
    runs[1].mkdir()
    assert refused("a", "b")[1] == "make them: `mpeval evaluate CHECKPOINT --task TASK --output b`"


def test_a_finetuned_run_names_its_evaluations(runs: tuple[Path, Path]) -> None:
    write(Path("run/evaluations/dev"), lambada(1))
    write(Path("run/evaluations/test"), lambada(1))
    assert refused("a", "run", kind=UsageError) == (
        "`run` holds 2 evaluations, each of which is a run",
        "give one, such as `run/evaluations/test`",
    )


def test_an_unfinished_run_is_to_be_gone_on_with(runs: tuple[Path, Path]) -> None:
    (runs[1] / "results.json").unlink()
    message, hint = refused("a", "b")
    assert message == "the evaluation in `b` is not finished: there is no `results.json`"
    assert "run the command again" in hint


def test_runs_without_a_protocol_in_common(runs: tuple[Path, Path]) -> None:
    write(Path("c"), lambada(1))
    write(Path("d"), wikitext(1))
    assert refused("c", "d") == (
        f"the runs have no protocol in common: `c` holds `{LAMBADA}`, `d` `{WIKITEXT}`",
        f"evaluate the other under it: `mpeval evaluate checkpoints/d --task {LAMBADA} --output d`",
    )
    assert refused("c", "d", protocols=("lambada",)) == (
        "`d` holds nothing under `lambada`",
        "evaluate it: `mpeval evaluate checkpoints/d --task lambada --output d`",
    )
    assert refused("a", "b", protocols=("race/megatron",))[0] == "`a` holds nothing under `race/megatron`"


def test_fewer_items_are_refused_by_the_join(runs: tuple[Path, Path]) -> None:
    write(Path("c"), lambada(3, count=200))
    message, hint = refused("a", "c")
    assert message.startswith("`c/samples.jsonl` lacks 100 questions (`00200`, `00201`, `00202`, ...) of `a/samples")
    assert hint == "both must be evaluated on the same questions, all of them"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol_version": "2"}, "the version of the protocol is `1` in `a`, `2` in `c`"),
        ({"data": {"source": "x", "digest": "sha256:other", "rows_expected": 1}}, "the digest of the data is `sha256:"),
    ],
)
def test_another_version_or_other_data(change: dict[str, Any], said: str, runs: tuple[Path, Path]) -> None:
    made, lines = lambada(3)
    write(Path("c"), (type(made)(**made.model_dump() | change), lines))
    assert refused("a", "c")[0].startswith(said)


def test_samples_of_another_run_than_the_results(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": "sha256:other"}))
    assert refused("a", "b")[0].startswith("in `b` the checkpoint is `sha256:other` by `run.json`, `sha256:b` by")


def test_lines_that_are_not_as_many_as_the_results_are_of(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert refused("a", "b")[0] == f"`b/samples.jsonl` holds 299 predictions under `{LAMBADA}`, its results are of 300"


def changed(number: int, **values: Any) -> Callable[[], None]:
    return lambda: change_line(Path("b"), number, **values)


def second_line_twice() -> None:
    path = Path("b/samples.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], lines[1], *lines[3:]]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed(1, correct="yes"), "`b/samples.jsonl` line 1 (`00000`): `correct` is yes"),
        (changed(2, correct=1), "`b/samples.jsonl` line 2 (`00001`): `correct` is 1"),
        (changed(3, correct=None), "`b/samples.jsonl` line 3 (`00002`): `correct` is None"),
        (changed(4, log_probability="x" * 100), "line 4 (`00003`): `log_probability` is " + "x" * 60 + "..."),
        (changed(5, log_probability=float("nan")), "line 5 (`00004`): `log_probability` is nan"),
        (changed(6, log_probability=-(10**400)), "line 6 (`00005`): `log_probability` is a number of many digits"),
        (changed(7, log_probability=None), "line 7 (`00006`): `log_probability` is None"),
        (changed(301, documents=[]), "line 301 (`window-000000`): `documents` is a list"),
        (changed(301, documents={"0": 1}), "line 301 (`window-000000`): `documents` is a dict"),
        (changed(301, documents=[[0, 1.0]]), "line 301 (`window-000000`): `documents` is a list"),
        (changed(301, documents=[[0, 1.0, 0]]), "line 301 (`window-000000`): `documents` is 0"),
        (changed(301, documents=[["0", 1.0, 5]]), "line 301 (`window-000000`): `documents` is a list"),
        (changed(301, documents=[[0, float("inf"), 5]]), "line 301 (`window-000000`): `documents` is inf"),
        (changed(302, documents=[[0, 9.0, 7]]), "`window-000100` is of other tokens in `a/samples.jsonl` than in `b/"),
        (changed(9, task=5), "`b/samples.jsonl` line 9 has no `task`"),
        (second_line_twice, "`b/samples.jsonl` line 3 is a second prediction for `00001`"),
    ],
)
def test_a_damaged_line_is_named(spoil: Callable[[], None], said: str, runs: tuple[Path, Path]) -> None:
    spoil()
    assert said in refused("a", "b")[0]


@pytest.mark.parametrize("metrics", [[], {"acc": "high"}, {"acc": [1, 2, 3]}, {"brier": 0.25}])
def test_samples_that_hold_nothing_to_compare(metrics: Any, runs: tuple[Path, Path]) -> None:
    for name in ("c.jsonl", "d.jsonl"):
        line = {"task": "lm-eval/x", "id": "00000", "metrics": metrics}
        Path(name).write_text(json.dumps(line) + "\n")
    message, _ = refused("c.jsonl", "d.jsonl")
    assert ("hold nothing that is compared item by item" in message) == isinstance(metrics, dict)


def test_a_perplexity_that_is_no_number(runs: tuple[Path, Path]) -> None:
    for value in ("nan", [1.0], [-3.0, 0], [True, None]):
        for name in ("c.jsonl", "d.jsonl"):
            line = {"task": "lm-eval/x", "id": "00000", "metrics": {"word_perplexity": value}}
            Path(name).write_text(json.dumps(line) + "\n")
        assert "line 1 (`00000`): `word_perplexity` is" in refused("c.jsonl", "d.jsonl")[0]
