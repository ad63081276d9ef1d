"""Seconds to publish 10,000 records, and milliseconds until a page of 5,000 numbers is sorted or filtered.

Run: `python benchmarks/leaderboard_page.py [--records 10_000] [--rows 5_000]`.  Publishing is the whole command, with
Python's start, in a process of its own; three times, the best counts.  The page is opened in headless Chromium at
desktop and phone width and times itself by `performance.now()`: until the event is handled, and until the layout that
follows it is done.  Each action is done five times, the median counts.  Skipped where there is no Chromium.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests" / part) for part in ("", "unit")]

from browser import CHROMIUM, Page, browsing  # noqa: E402
from recorded import record  # noqa: E402
from test_page import published  # noqa: E402

BOARDS = 20
ACTIONS = {
    "text that few rows have": "type('model-39')",
    "text that a tenth has": "type('model-3')",
    "no text again: all rows": "type('')",
    "text that no row has": "type('nothing at all')",
    "one protocol of twenty": "choose('lambada/p3')",
    "all protocols again": "choose('')",
    "sort by value": "click(4)",
    "sort by model": "click(6)",
}
BEFORE = {"no text again: all rows": "type('model-3')", "all protocols again": "choose('lambada/p3')"}
"""What each action that undoes one begins from; the others begin from all rows."""
SCRIPT = """
(() => {
  const input = document.querySelector('input'), select = document.querySelectorAll('select')[2];
  const fire = (control, value, kind) => { control.value = value; control.dispatchEvent(new Event(kind)); };
  const type = (text) => fire(input, text, 'input'), choose = (value) => fire(select, value, 'change');
  const click = (place) => document.querySelectorAll('thead button')[place].click();
  const settle = () => document.querySelector('table').getBoundingClientRect().height;
  document.querySelector('#filters button').click(); BEFORE; settle();
  const start = performance.now(); ACTION; const handled = performance.now(); settle();
  return [handled - start, performance.now() - start];
})()
"""


def write(store: Path, count: int) -> None:
    """Write records of 400 models at several iterations under twenty protocols, and as many reported as a tenth."""
    lines = [
        record(
            0.2 + 0.6 * (one * 7919 % count) / count,
            protocol=f"lambada/p{one % BOARDS}",
            name=f"model-{one % 400}",
            digest=f"sha256:{one:064x}",
            iteration=1000 * (one // 400),
            parameters=10**6 * (1 + one % 997),
            created_at=f"20{10 + one % 15}-01-02T03:04:05Z",
        )
        if one % 10
        else published(f"{20 + one % 60}.{one:05}", protocol=f"lambada/p{one % BOARDS}", name=f"model-{one % 400}")
        for one in range(count)
    ]
    store.write_text("".join(line.line() + "\n" for line in lines), encoding="utf-8")


def publish(store: Path, output: Path) -> float:
    """Return the seconds that the command takes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mpeval", "leaderboard", "publish", "--store", str(store), "--output", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def timings(page: Page, action: str) -> tuple[float, float]:
    """Return the medians of five times, in milliseconds: until it is handled, until it is laid out."""
    script = SCRIPT.replace("ACTION", ACTIONS[action]).replace("BEFORE", BEFORE.get(action, "0"))
    handled, done = zip(*(page.run(script) for _ in range(5)), strict=True)
    return statistics.median(handled), statistics.median(done)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the browser ends late
        root = Path(folder)
        write(root / "many.jsonl", options.records)
        best = min(publish(root / "many.jsonl", root / "many") for _ in range(3))
        size = (root / "many" / "index.html").stat().st_size / 1e6
        print(f"publishing {options.records:,} records: {best:.2f} s, index.html {size:.1f} MB")
        write(root / "rows.jsonl", options.rows)
        publish(root / "rows.jsonl", root / "rows")
        if not CHROMIUM:
            print("no Chromium here: the page was not opened")
            return
        with browsing(root / "profile") as page:
            for width in (1280, 390):
                page.look(width=width)
                page.open((root / "rows" / "index.html").as_uri())
                print(f"{options.rows:,} rows, {width} px wide" + " " * 10 + "handled  laid out, ms")
                for action in ACTIONS:
                    handled, done = timings(page, action)
                    print(f"  {action:30} {handled:8.0f} {done:9.0f}")


if __name__ == "__main__":
    main()
