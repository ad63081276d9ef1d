"""Documents for tests of what turns text into token ids, and the files that hold them."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard
from making import PASSAGES, ROWS, tokenizer_json

TEXTS = (
    *ROWS,
    "\n\n".join(PASSAGES),
    "naïve café — “quoted” \U0001f600 日本語 ١٢٣ x²",
    "  two  spaces\tand tabs\n\n\n  indented ",
    "Mr. Smith came at 5 p.m. on Monday. He left early! Why?\nNobody knows.",
    "don't won't I'll we've 'tis 3'd",
    "a",
    "non-breaking\xa0\xa0space \u3000 ideographic\u2028line\x85next\x1cfile",
)
"""Documents of several kinds, none with a carriage return or a line end at its end."""
WORDPIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("the", "river", "he", "she", "##ing", "##ed", "old", "sailor", "came", "and", "日"),
)


def write_bpe(folder: Path) -> Path:
    """Write a small GPT-2 tokenizer; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


def write_wordpiece(folder: Path, pieces: Sequence[str] = WORDPIECES) -> Path:
    """Write a small BERT vocabulary; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return folder


def json_lines(texts: Sequence[str], field: str = "text") -> bytes:
    """Return the content of a JSONL file."""
    return "".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts)).encode()


def plain(texts: Sequence[str]) -> bytes:
    """Return the content of a text file of several documents."""
    return "\n<|endoftext|>\n".join(texts).encode()


def parquet(path: Path, texts: Sequence[str | None], field: str = "text", group: int = 7) -> None:
    """Write a parquet file with groups of a few rows."""
    table = pyarrow.table({"id": list(range(len(texts))), field: pyarrow.array(texts, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def zstd(content: bytes) -> bytes:
    """Compress into two frames, as parallel compressors do."""
    half = len(content) // 2
    return b"".join(
        zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in (content[:half], content[half:])
    )


def gzip_members(content: bytes) -> bytes:
    """Compress into two members."""
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip_members, ".xz": lzma.compress, ".zst": zstd}


def write_all_kinds(folder: Path, texts: Sequence[str] = TEXTS) -> list[Path]:
    """Write the same documents into a file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "plain.jsonl": json_lines(texts),
        "plain.ndjson": b"\xef\xbb\xbf" + json_lines(texts).replace(b"\n", b"\r\n\r\n"),
        "open.json": json_lines(texts).removesuffix(b"\n"),
        "plain.txt": plain(texts),
        "closed.md": plain(texts) + b"\n <|endoftext|> ",
        "windows.text": b"\xef\xbb\xbf" + plain(texts).replace(b"\n", b"\r\n") + b"\r\n",
    }
    for ending, compress in COMPRESS.items():
        contents[f"packed.jsonl{ending}"] = compress(json_lines(texts))
        contents[f"packed.txt{ending}"] = compress(plain(texts))
    contents["nameless.jsonl"] = gzip.compress(json_lines(texts))  # told by its first bytes
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    parquet(folder / "rows.parquet", texts)
    return [folder / name for name in [*contents, "rows.parquet"]]
