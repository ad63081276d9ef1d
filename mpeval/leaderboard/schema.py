"""The JSON Schema of a leaderboard's lines, for programs that are not mpeval."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from mpeval.leaderboard.entries import Retraction
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of one line: measured, reported or a retraction, by its `kind`."""
    lines: TypeAdapter[Any] = TypeAdapter(Annotated[Record | Reported | Retraction, Field(discriminator="kind")])
    schema = lines.json_schema()
    for name in ("Record", "Reported", "Retraction"):
        _as_written(schema["$defs"][name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of a leaderboard of mpeval",
        **schema,
    }


def _as_written(line: dict[str, Any]) -> None:
    """Turn the schema of a line's model into that of its JSON, which has its schema, kind and id in any case."""
    properties = line["properties"]
    line["properties"] = {"schema": properties.pop("schema_"), **properties}
    line["properties"]["record_id"] = {"pattern": "^sha256:[0-9a-f]{64}$", "title": "Record Id", "type": "string"}
    line["required"] = ["schema", "kind", "record_id", *line["required"]]


def schema_text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
