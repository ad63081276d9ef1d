"""Any text as LaTeX that every engine sets, without a package: specials escaped, accents as commands."""

from __future__ import annotations

import re
import unicodedata

from mpeval.leaderboard.text import one_line

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "[": "{[}",
    "]": "{]}",
}
"""Brackets too: after a line's end one would begin an argument."""
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0323": "d",
    "\u0327": "c",
}
_SMALL = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi"
_MORE = "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", f"{_SMALL} {_MORE}".split(), strict=True))
NAMED = {
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "•": r"\textbullet{}",
    "©": r"\copyright{}",
    "§": r"\S{}",
    "£": r"\pounds{}",
    "\xa0": "~",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "°": r"$^{\circ}$",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
    **{character: f"$\\{name}$" for character, name in GREEK.items()},
}
LIGATURES = re.compile(r"(?<=[-`'?!,<>])(?=[-`',<>])")


def escape(text: str) -> str:
    """Return text as one line of LaTeX, of ASCII only.

    A character that plain LaTeX has no command for is named by its number, `[U+4E2D]`, for that stops no engine.
    """
    return "".join(map(_piece, re.split(f"([{''.join(NAMED)}])", unicodedata.normalize("NFC", one_line(text)))))


def _piece(text: str) -> str:
    if text in NAMED:
        return NAMED[text]
    return "".join(_character(character) for character in LIGATURES.sub("\0", text))


def _character(character: str) -> str:
    if character == "\0":
        return "{}"
    if character.isascii():
        return SPECIAL.get(character, character)
    base, *marks = list(unicodedata.normalize("NFD", character))
    if marks and base.isascii() and base.isalpha() and all(mark in ACCENTS for mark in marks):
        made = base
        for mark in marks:
            made = f"\\{ACCENTS[mark]}{{{made}}}"
        return made
    return f"{{[}}U+{ord(character):04X}{{]}}"
