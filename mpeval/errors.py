"""The errors that a user can cause, each with a hint that says what to do next.

* MpevalError
  * UsageError       contradictory or unknown options (exit code 2)
  * ConfigError      a model or run configuration that cannot be
  * CheckpointError  missing, damaged, hostile or incomplete checkpoints
  * DataError        missing, changed or malformed benchmark files
  * TokenizerError   no tokenizer, or one that does not fit
  * OutputError      a result that cannot be written, or belongs to another run
  * LaunchError      ranks that cannot start, or died
  * TrainingError    a training run that diverged
"""

from __future__ import annotations


class MpevalError(Exception):
    """A mistake a user can mend: one line that says what, one hint that says how."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        """Keep `message` (one line, no full stop) and `hint` (the next thing to do)."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[MpevalError], tuple[str, str]]:
        """Cross process borders with the hint."""
        return type(self), (self.message, self.hint)


class UsageError(MpevalError):
    """Options that contradict each other or name something unknown."""

    exit_code = 2


class ConfigError(MpevalError):
    """A configuration that no model can have."""


class CheckpointError(MpevalError):
    """A checkpoint that is missing, damaged, hostile or incomplete."""


class DataError(MpevalError):
    """Benchmark data that is missing, changed or malformed."""


class TokenizerError(MpevalError):
    """A tokenizer that is missing or does not fit the checkpoint."""


class OutputError(MpevalError):
    """An output folder or file that cannot be used."""


class LaunchError(MpevalError):
    """Ranks that could not be started, or that died."""


class TrainingError(MpevalError):
    """A training run whose loss or gradients are no numbers any more."""


NAME_LENGTH = 500


def name_in_file(key: object) -> str:
    """Return the text of a dictionary's key out of a file.

    Raises:
        ValueError: it is longer than any name; joining such names would take memory without end.
    """
    text = key if isinstance(key, str) else shown(key)
    if len(text) > NAME_LENGTH:
        raise ValueError(f"a name of {len(text)} letters: {shown(text)}")
    return text


def shown(value: object) -> str:
    """Return a short text for a value out of a file, which may be of any size and shape."""
    if isinstance(value, int) and not -(10**15) < value < 10**15:
        return "a number of many digits"
    if value is None or isinstance(value, str | int | float):
        text = str(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"a {getattr(value, 'qualified', type(value).__name__)}"


def suggest(name: str, known: list[str]) -> str:
    """Say the nearest of `known` names as a hint, or list them all."""
    import difflib

    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(f'`{item}`' for item in known)}"
