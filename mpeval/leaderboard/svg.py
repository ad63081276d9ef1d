"""Pictures of matplotlib as elements of a page whose policy lets nothing in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

INK = "#010203"
"""Stands for the page's colour of text until the picture is in it."""
LINES = "#040506"
"""Likewise for the lines of the grid."""
_NAMESPACE = re.compile(r"\{.*\}")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_OWN_COLOURS = {INK: {"": "currentColor"}, LINES: {"": "currentColor", "-opacity": "0.15"}}


def inlined(svg: str, name: str, alternative: str) -> str:
    """Return a picture of matplotlib's as an element of an HTML page.

    Styles become attributes, since the page's policy forbids them; colours of text become the page's own; ids are
    distinct from those of other pictures; what screen readers say is `alternative`.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in {"metadata", "style", "clipPath"}:
                parent.remove(child)
    used = {value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")}
    names = {target: f"#{name}-{number}" for number, target in enumerate(sorted(used))}
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        attributes = {_NAMESPACE.sub("", key): value for key, value in element.attrib.items() if key != "clip-path"}
        attributes |= dict(_presentation(attributes.pop("style", "")))
        identity = names.get(f"#{attributes.pop('id', '')}")
        attributes |= {"id": identity[1:]} if identity else {}
        attributes |= {"href": names[attributes["href"]]} if "href" in attributes else {}
        element.attrib = {key: _DECIMALS.sub(_shorter, value) for key, value in attributes.items()}
        element.tail = None
    view = root.attrib["viewBox"]
    root.attrib = {"viewBox": view, "role": "img", "aria-label": " ".join(alternative.split())}
    return ElementTree.tostring(root, encoding="unicode")


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _presentation(style: str) -> Sequence[tuple[str, str]]:
    """Return the attributes that say what a `style` does."""
    found: list[tuple[str, str]] = []
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = re.search(r"([\d.]+)px", value)
            found += [("font-size", size[1])] if size else []
        elif value in _OWN_COLOURS:
            found += [(key + suffix, said) for suffix, said in _OWN_COLOURS[value].items()]
        elif key:
            found.append((key, value))
    return found
