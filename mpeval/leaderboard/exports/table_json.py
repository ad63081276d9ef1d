"""The boards as one JSON document: what is shown of each number, and the whole line it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.exports.export import Export, pretty

SCHEMA = "mpeval.leaderboard/1"


def export(content: Sequence[Board]) -> Export:
    """Return `leaderboard.json`."""
    return Export(files={"leaderboard.json": pretty(document(content))})


def document(content: Sequence[Board]) -> dict[str, Any]:
    """Return the boards as plain JSON values."""
    return {"schema": SCHEMA, "boards": [_board(board) for board in content]}


def _board(board: Board) -> dict[str, Any]:
    return {
        "title": board.title,
        "protocol": board.protocol,
        "split": board.split,
        "metric": board.metric,
        "direction": board.direction,
        "columns": list(board.columns),
        "headings": board.headings,
        "rows": [_row(row) for row in board.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    record = {**row.entry.document(), "record_id": row.entry.identity()}
    return {"rank": row.rank, "cells": row.cells, "record": record}
