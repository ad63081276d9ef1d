"""lm-eval's own command line with the model `mpeval` in its registry, on as many ranks as the model asks for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mpeval import launch
from mpeval.errors import UsageError
from mpeval.harness.checkpoint import device_of, on_ranks


def run(arguments: Sequence[str]) -> None:
    """Run lm-eval with these arguments; what it prints and how it ends is its own.

    Raises:
        SystemExit: by lm-eval, with its exit code.
    """
    asked = _model_asked_for(arguments)
    if asked is None:
        _lm_eval(arguments)
        return
    world = launch.world_of(os.environ)
    device = device_of(asked.get("device"))
    tp, dp = launch.sizes(_number("tp", asked), _number("dp", asked), world)
    if world is None and tp * dp > 1:
        launch.run_local(tp * dp, _as_rank, (tuple(arguments), tp, dp, device))
    elif world is None:
        _lm_eval(arguments)
    else:
        _as_rank(world, (tuple(arguments), tp, dp, device))


def _as_rank(world: launch.World, job: tuple[tuple[str, ...], int, int, str]) -> None:
    """Run lm-eval as one rank; only the first of all writes and speaks."""
    arguments, tp, dp, device = job
    with launch.joined(world, tp=tp, dp=dp, device=device) as group, on_ranks(group):
        # by this lm-eval knows which of several ranks that all say they are the first is it
        os.environ["LOCAL_RANK"] = str(world.rank)
        if world.rank:
            os.environ["LMEVAL_LOG_LEVEL"] = "ERROR"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        _lm_eval(arguments)


def _lm_eval(arguments: Sequence[str]) -> None:
    from lm_eval.__main__ import cli_evaluate

    with _as_arguments(arguments):
        cli_evaluate()


@contextmanager
def _as_arguments(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _model_asked_for(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of the model `mpeval`; None where another model, or no run, is asked for.

    A mistake that lm-eval's parser finds ends here, before ranks are started.
    """
    from lm_eval._cli import HarnessCLI

    with _as_arguments(arguments):
        parsed = vars(HarnessCLI().parse_args())
    if parsed.get("command") != "run":
        return None
    settings: dict[str, Any] = {}
    if parsed.get("config"):
        from lm_eval.config.evaluate_config import EvaluatorConfig

        settings = EvaluatorConfig.load_yaml_config(parsed["config"])
    if (parsed.get("model") or settings.get("model")) != "mpeval":
        return None
    given = parsed.get("model_args") or settings.get("model_args") or {}
    if isinstance(given, str):
        from lm_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(given)
    if "device" in given:
        raise UsageError(
            f"`device={given['device']}` in `--model_args` stands beside lm-eval's own `--device`",
            f"give `--device {given['device']}`",
        )
    return {**given, "device": parsed.get("device") or settings.get("device")}


def _number(name: str, asked: Mapping[str, Any]) -> int | None:
    value = asked.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UsageError(f"`{name}={value}` is not a number of ranks", "give 1 or more")
    return value
