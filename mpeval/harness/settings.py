"""How a task wants texts continued: lm-eval's `generation_kwargs`, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpeval.errors import UsageError, suggest
from mpeval.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mpeval.generate import Sampling

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the number of new tokens; the first that is given counts, as in lm-eval."""
NEUTRAL: dict[str, tuple[Any, ...]] = {"num_beams": (1,), "repetition_penalty": (1, 1.0), "num_return_sequences": (1,)}
"""What is not done here, and the values that ask for nothing."""
KNOWN = ("until", "do_sample", "temperature", "top_k", "top_p", "seed", *LIMITS, *NEUTRAL)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Up to `limit` tokens, up to the first of the strings `until`, drawn by `sampling` or (None) the most likely."""

    until: tuple[str, ...]
    limit: int
    sampling: Sampling | None

    @classmethod
    def of(cls, given: Mapping[str, Any], limit: int, seed: int) -> Continuation:
        """Read a task's settings; `limit` and `seed` are what holds where it says nothing.

        Raises:
            UsageError: a setting that is unknown, or cannot be followed.
        """
        from mpeval.generate import Sampling

        for name, value in given.items():
            if name not in KNOWN:
                raise UsageError(f"the task asks for `{name}={value}` when it generates", suggest(name, list(KNOWN)))
            if name in NEUTRAL and value not in NEUTRAL[name]:
                raise UsageError(
                    f"the task asks for `{name}={value}`, which is not done", f"set it to {NEUTRAL[name][0]}"
                )
        until = given.get("until") or []
        temperature = float(given.get("temperature") or 0.0)
        sample = given.get("do_sample")
        sample = temperature > 0 if sample is None else bool(sample)
        limits = [given[name] for name in LIMITS if given.get(name) is not None]
        if int([*limits, limit][0]) < 1:
            raise UsageError(f"the task asks for {limits[0]} new tokens", "ask for 1 or more")
        return cls(
            until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
            limit=int([*limits, limit][0]),
            sampling=Sampling(
                temperature=temperature,
                top_k=int(given.get("top_k") or 0),
                top_p=1.0 if given.get("top_p") is None else float(given["top_p"]),
                seed=int(given.get("seed", seed)),
            )
            if sample
            else None,
        )

    @staticmethod
    def ended(text: str, until: Sequence[str]) -> str:
        """Return the text before the first of the strings `until`."""
        for stop in until:
            text = text.partition(stop)[0]
        return text

    @staticmethod
    def stopper(tokenizer: Tokenizer, until: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """Return what tells whether the end of new tokens has one of the strings `until` in it.

        A character is made of up to four tokens, so that many times the longest string's letters are looked at.
        """
        reach = 4 * max(map(len, until), default=0) + 4

        def stops(ids: Sequence[int]) -> bool:
            tail = tokenizer.decode(ids[-reach:])
            return any(stop in tail for stop in until)

        return stops
