"""A page of the leaderboard taken apart by Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser

COLUMNS = (
    *("Task", "Benchmark", "Split", "Metric", "Value", "95 % interval", "Model", "Parameters", "Rank", "Kind"),
    *("Protocol", "Paper or source", "Date"),
)
VOID = {"meta", "link", "br", "input", "col"}


class Page(HTMLParser):
    """Collects what a page is made of; that elements are closed in their order is checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        """Cells of each number with their columns."""
        self.details: list[dict[str, str]] = []
        """What is said of each number, by term."""
        self.texts: dict[str, str] = {}
        """Text of `script` and `style`."""
        self.open: list[str] = []
        self.cell: list[str] | None = None
        self.term = ""
        self.feed(text)
        self.close()
        assert self.open == [], "left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr" and "number" in (dict(attrs).get("class") or ""):
            self.rows.append([])
        if tag == "dl":
            self.details.append({})
        if tag in {"th", "td", "dt", "dd"}:
            self.cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag not in {"th", "td", "dt", "dd"}:
            return
        text = "".join(self.cell or [])
        if tag == "th":
            self.headings.append(text)
        elif tag == "dt":
            self.term = text
        elif tag == "dd":
            assert self.term not in self.details[-1]
            self.details[-1][self.term] = text
        elif self.rows and len(self.rows[-1]) < len(COLUMNS):
            self.rows[-1].append((COLUMNS[len(self.rows[-1])], text))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"script", "style"}:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        elif self.cell is not None:
            self.cell.append(data)
