"""JSON and YAML that somebody else wrote, taken apart with care: any value may be of any kind."""

from __future__ import annotations

import json
import re
from typing import Any

from mpeval.errors import DataError

_HALF = r"\\(?:u|U0000)[dD][89a-fA-F][0-9a-fA-F]{2}"
"""An escape that stands for half a letter of UTF-16."""


def json_of(text: str, what: str) -> Any:
    """Return the value of a JSON text.  NaN and infinities come as they are, for values are checked one by one.

    Raises:
        DataError: no JSON.
    """
    try:
        value = json.loads(text)
        if re.search(_HALF, text):  # a pair of them is a letter, one alone is no text
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is no JSON: {error}", f"give {what}") from error
    return value


def yaml_documents(text: str, what: str) -> list[Any]:
    """Return the documents of a YAML text, or the front matter of a Markdown page.

    Raises:
        DataError: no YAML.
    """
    import yaml

    try:
        whole = re.sub(_HALF, r"\\ufffd", _front_matter(text))
        return [document for document in yaml.safe_load_all(whole) if document is not None]
    # the last four are what the parser raises at values that are not of their tag, such as `!!int ""`
    except (yaml.YAMLError, RecursionError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"the file is no YAML: {' '.join(str(error).split())}", f"give {what}") from error


def _front_matter(text: str) -> str:
    """Return what stands between a page's first two `---`; the whole text if it is YAML of several documents."""
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return text
    end = next((number for number, line in enumerate(lines) if number and line.rstrip() == "---"), None)
    another = end is not None and lines[end + 1 : end + 2] == ["model-index:"]
    if end is not None and not another:
        return "\n".join(lines[1:end])
    return text


def mapping(value: object) -> dict[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """Return a value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def words(value: object) -> str:
    """Return a value as text of one line if it is text or a number, else nothing."""
    return " ".join(str(value).split()) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


LARGEST = 10**9
"""More items than any set has."""


def count(value: object) -> int | None:
    """Return a value if it is a number of items, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST else None
