"""What people write into cells that should hold a number, a size or a name, made plain; nothing is guessed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from mpeval.errors import shown

NUMBER = r"[0-9]+(?:\.[0-9]+)?"
MISSING = frozenset({"", "-", "--", "–", "—", "n/a", "na", "nan", "none", "null", "tbd", "?"})
"""What stands for no value."""
NO_NAMES = frozenset({*MISSING, "test"})
"""What stands for no model."""
LONGEST = 200
"""Letters of a cell that may hold a number."""
LARGEST = 1e300
"""What no number here comes near."""
SCALES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SPACES = {ord(space): " " for space in "\u00a0\u2007\u2009\u202f\t\r\n"}
_ABOUT = "~≈∼"


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A value as a plain number in the source's own digits, None if there is none, and what was found on the way."""

    printed: str | None
    found: tuple[tuple[str, str], ...] = ()
    """A reason code and what was done, each."""
    remark: str = ""
    """The cell as it stands, where something beside the number is in it."""


@dataclass(frozen=True, kw_only=True)
class Name:
    """A model's name, without the number of examples where it is said there."""

    text: str
    shots: str = ""
    found: tuple[tuple[str, str], ...] = ()


def clean_value(raw: object, *, name: str = "") -> Cleaned:
    """Return the plain number in a cell.

    Args:
        raw: text, number or anything else that a file may hold there.
        name: of the model, which some tables repeat in the place of its value.
    """
    if raw is None or isinstance(raw, bool | list | dict):
        return _none("missing", "no value") if raw is None else _none("not-a-number", f"`{shown(raw)}` is no number")
    if isinstance(raw, int | float):
        return _of_number(raw)
    text = _plain(str(raw))
    if text.casefold() in MISSING:
        return _none("missing", f"`{text}` stands for no value" if text else "no value")
    if len(text) > LONGEST:
        return _none("not-a-number", f"`{shown(text)}` is no number")
    if name and _key(text) == _key(name):
        return _none("value-is-name", "the value is the model's name")
    return _of_text(text)


def finite(value: object) -> float | None:
    """Return a value as a float if it is a number of reasonable size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return float(value)


def _of_number(raw: float) -> Cleaned:
    if isinstance(raw, int) and finite(raw) is None:
        return _none("not-a-number", f"`{shown(raw)}` is no value")
    if not math.isfinite(raw):
        return _none("not-finite", f"`{raw}` is no finite number")
    if raw < 0:
        return _none("negative", f"`{shown(raw)}` is below 0")
    return Cleaned(printed=_digits(repr(abs(raw))))  # there is a -0.0


def _digits(text: str) -> str:
    """Return a number without an exponent, and with a digit before the point."""
    return format(Decimal(text), "f")


def _of_text(text: str) -> Cleaned:
    """Read a cell that is not empty, from its plainest form to the oddest."""
    if re.fullmatch(NUMBER, text):
        return Cleaned(printed=text)
    for read in (_marked, _approximate, _with_comma, _with_spread, _with_remark):
        cleaned = read(text)
        if cleaned is not None:
            return cleaned
    for pattern, code, said in _NOT_VALUES:
        if re.fullmatch(pattern, text, re.IGNORECASE):
            return _none(code, f"`{shown(text)}` {said}")
    if re.fullmatch(rf"\.[0-9]+|{NUMBER}e[+-]?[0-9]{{1,2}}", text, re.IGNORECASE):
        return Cleaned(printed=_digits(text), found=(("notation", f"`{shown(text)}` read as a number"),))
    return _none("not-a-number", f"`{shown(text)}` is no number")


_NOT_VALUES = (
    (rf"[<>≤≥]\s*{NUMBER}\s*%?", "bound", "is a bound, not a value"),
    (rf"{NUMBER}\s*[KMBT]", "size-not-score", "is a model's size, not a score"),
    (rf"[-−]{NUMBER}\s*%?", "negative", "is below 0"),
    (r"[+-]?inf(inity)?", "not-finite", "is no finite number"),
)


def _marked(text: str) -> Cleaned | None:
    """Take off per cent signs, emphasis and footnote marks."""
    match = re.fullmatch(r"[*_]{0,3}(.*?[0-9][^%*_†‡∗]*?)\s*(%?)\s*[*_†‡∗]{0,3}\s*(%?)", text)
    if not match or match.group(1) == text:
        return None
    inner = _of_text(match.group(1))
    code = "percent-sign" if match.group(2) or match.group(3) else "marks"
    return _within(inner, code, text, f"`{shown(text)}` read without its signs")


def _approximate(text: str) -> Cleaned | None:
    if text[0] not in _ABOUT:
        return None
    return _within(_of_text(text[1:].strip() or "?"), "approximate", text, f"`{shown(text)}` is only about this")


def _with_comma(text: str) -> Cleaned | None:
    """Read a comma for what it must be; one before three digits may be either."""
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+\.[0-9]+|[0-9]{1,3}(,[0-9]{3}){2,}", text):
        plain = text.replace(",", "")
        return Cleaned(printed=plain, found=(("thousands", f"`{shown(text)}` read as {plain}"),))
    if re.fullmatch(r"[0-9]+,[0-9]{3}", text):
        return _none("ambiguous-comma", f"`{shown(text)}` may be a fraction or thousands")
    if re.fullmatch(r"[0-9]+,[0-9]+", text):
        plain = text.replace(",", ".")
        return Cleaned(printed=plain, found=(("decimal-comma", f"`{shown(text)}` read as {plain}"),))
    return None


def _with_spread(text: str) -> Cleaned | None:
    """Read `90.5 ± 0.3` and `90.5(3)`; of what the spread is, a cell does not say."""
    match = re.fullmatch(rf"({NUMBER})\s*%?\s*(?:±|\+/-|\+-)\s*{NUMBER}\s*%?", text)
    match = match or re.fullmatch(r"([0-9]+\.[0-9]+)\([0-9]{1,2}\)", text)
    if not match:
        return None
    found = (("spread", f"`{shown(text)}` read as {match.group(1)}, the rest kept in a note"),)
    return Cleaned(printed=match.group(1), found=found, remark=text)


def _with_remark(text: str) -> Cleaned | None:
    """Read a number with words in brackets behind it."""
    match = re.fullmatch(rf"({NUMBER})\s*%?\s*[(\[].*[)\]]", text)
    if not match:
        return None
    found = (("remark", f"`{shown(text)}` read as {match.group(1)}, the rest kept in a note"),)
    return Cleaned(printed=match.group(1), found=found, remark=text)


def _within(inner: Cleaned, code: str, text: str, said: str) -> Cleaned:
    """Return what was found inside a text, with the reason why it had to be looked for."""
    if inner.printed is None:
        return inner
    return Cleaned(printed=inner.printed, found=((code, said), *inner.found), remark=text)


def _none(code: str, said: str) -> Cleaned:
    return Cleaned(printed=None, found=((code, said),))


def clean_size(raw: object) -> tuple[float | None, tuple[tuple[str, str], ...]]:
    """Return a number of parameters, `8.3B`, `8300M`, `~257M` or digits alone, and what was found on the way."""
    number = finite(raw)
    if number is not None and number > 0:
        return number, ()
    text = _plain(str(raw)) if isinstance(raw, str) else ""
    if text.casefold() in MISSING:
        return None, ()
    match = re.fullmatch(rf"([{_ABOUT}]?)\s*({NUMBER})\s*([KMBT]?)", text.replace(",", ""), re.IGNORECASE)
    if not match or not float(match.group(2)) or ("." in match.group(2) and not match.group(3)):
        return None, (("size", f"`{shown(text)}` is no number of parameters"),)
    size = float(Decimal(match.group(2)) * int(SCALES.get(match.group(3).upper(), 1)))
    if finite(size) is None:
        return None, (("size", f"`{shown(text)}` is no number of parameters"),)
    return size, (("approximate", f"`{shown(text)}` read as {size:,.0f} parameters"),) if match.group(1) else ()


_SHOTS = re.compile(
    r"\s*[(\[]\s*(?P<count>zero|one|few|[0-9]{1,3})[\s-]*shots?(?:\s*,?\s*k\s*=\s*(?P<k>[0-9]{1,3}))?\s*[)\]]",
    re.IGNORECASE,
)
_TUNED = re.compile(r"\bfine-?\s?tuned\b", re.IGNORECASE)


def clean_name(raw: object) -> Name:
    """Return a model's name with single spaces, and the examples that it says it was shown.

    An empty `text` means that there is no name.
    """
    said = str(raw) if isinstance(raw, str) else ""
    text = _plain(said)
    if text.casefold() in NO_NAMES:
        return Name(text="", found=(("placeholder-name", f"`{shown(text)}` names no model"),))
    found: list[tuple[str, str]] = []
    single = " ".join(text.split())
    if single != said:
        found.append(("spaces", f"the name has odd spaces: `{shown(said)}`"))
    if "\ufffd" in single or "[?]" in single or re.match(r"[-–—?*.,:;]", single):
        found.append(("odd-name", f"the name `{shown(single)}` looks damaged"))
    match = _SHOTS.search(single)
    shots = ""
    if match:
        count = match.group("count").casefold()
        shots = match.group("k") or {"zero": "0", "one": "1"}.get(count, count)
        single = " ".join(f"{single[: match.start()]} {single[match.end() :]}".split())
        found.append(("shots-in-name", f"`{match.group().strip()}` read as {shots} examples"))
    elif _TUNED.search(single):
        shots = "finetuned"
        found.append(("shots-in-name", "the name says that it is finetuned"))
    return Name(text=single, shots=shots, found=tuple(found))


def _plain(text: str) -> str:
    """Return text with usual spaces, none at the ends."""
    return text.translate(_SPACES).strip()


def _key(text: str) -> str:
    return "".join(text.casefold().split())
