"""Small files of other people's formats, and what an import makes of them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from mpeval.leaderboard.importing.drafts import Given
from mpeval.leaderboard.importing.pipeline import Imported, Options, run
from mpeval.leaderboard.reported import Reported
from mpeval.leaderboard.store import read

SOURCE = "https://example.org/results"


def bring(file: Path, form: str, store: Path | None, **given: str) -> Imported:
    """Import a file; without a store it is a dry run."""
    return run(Options(file=file, form=form, store=store, dry_run=store is None, given=Given(**given)))


def numbers_of(store: Path) -> list[Reported]:
    """Return the reported numbers of a store."""
    return [one for one in read(store) if isinstance(one, Reported)]


def codes_of(imported: Imported) -> dict[str, set[str]]:
    """Return the reason codes by the place that they are about."""
    codes: dict[str, set[str]] = defaultdict(set)
    for finding in imported.findings:
        codes[finding.place].add(finding.code)
    return dict(codes)


def paper_row(
    name: str, url: str = "https://arxiv.org/abs/2005.14165", date: str | None = None, **metrics: Any
) -> dict[str, Any]:
    """Return a row of a table of Papers with Code; underscores in metrics' names stand for spaces."""
    return {
        "model_name": name,
        "paper_title": "A paper",
        "paper_url": url,
        "paper_date": date,
        "code_links": [],
        "model_links": [],
        "uses_additional_data": False,
        "metrics": {key.replace("_", " "): value for key, value in metrics.items()},
    }


def papers_file(path: Path, **tables: list[Any]) -> Path:
    """Write a file of Papers with Code with a table for each data set; underscores stand for hyphens."""
    datasets = [
        {"dataset": name.replace("_", "-"), "description": "", "sota": {"metrics": [], "rows": rows}, "subdatasets": []}
        for name, rows in tables.items()
    ]
    task = {"task": "Any", "categories": [], "datasets": datasets, "subtasks": [], "source_link": None}
    path.write_text(json.dumps([task]), encoding="utf-8")
    return path
