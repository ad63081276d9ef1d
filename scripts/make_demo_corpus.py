"""Make what the demo models are trained on: text as JSON lines, and a BPE and a WordPiece tokenizer of that text.

    python scripts/make_demo_corpus.py DATA OUTPUT [--vocab 4096]

DATA holds `wikitext-2`, `megatron-indexed` and `race` as their PROVENANCE files describe them.  OUTPUT gets
`wikitext.jsonl`, `openwebtext.jsonl`, `race.jsonl` (one document a line), `bpe/tokenizer.json` and
`wordpiece/vocab.txt`.  RACE may be used for research only: its text stays in OUTPUT.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mpeval.corpus.indexed import IndexedDataset
from mpeval.folders import write_atomically
from mpeval.tasks.perplexity import detokenize
from mpeval.tokenizer import find_tokenizer

END_OF_TEXT = "<|endoftext|>"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_HEADING = re.compile(r"(?m)^ = [^=\n]+ = \n")


def wikitext(folder: Path) -> Iterator[str]:
    """Yield the articles of WikiText-2's training split as plain text, spacing restored."""
    text = lzma.decompress((folder / "wiki.train.tokens.xz").read_bytes()).decode()
    starts = [match.start() for match in _HEADING.finditer(text)]
    for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield detokenize(text[begin:end]).strip()


def openwebtext(folder: Path) -> Iterator[str]:
    """Yield the documents of the OpenWebText sample, decoded with the tokenizer that lies beside it."""
    dataset = IndexedDataset(folder / "meg-gpt2-openwebtext_text_document")
    renamed = folder / "gpt2-tiny-vocab.json", folder / "gpt2-tiny-merges.txt"
    tokenizer = find_tokenizer(_under_known_names(*renamed), [])
    end = tokenizer.end_of_text
    for index in range(len(dataset)):
        yield tokenizer.decode([token for token in dataset[index].tolist() if token != end])


def _under_known_names(vocab: Path, merges: Path) -> Path:
    """Copy a BPE's two files to a temporary folder under the names that GPT-2's have."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    (folder / "vocab.json").write_bytes(vocab.read_bytes())
    (folder / "merges.txt").write_bytes(merges.read_bytes())
    return folder


def race(folder: Path) -> Iterator[str]:
    """Yield the articles of RACE's training split, middle schools first; no question, option or answer."""
    for name in ("race_train_middle.tar.xz", "race_train_high.tar.xz"):
        with tarfile.open(folder / name) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".txt") else None
                if file is not None:
                    yield re.sub(r"[ \t]+", " ", str(json.load(file)["article"])).strip()


def write_lines(path: Path, texts: Iterable[str]) -> list[str]:
    """Write one JSON object per text and return the texts."""
    kept = [text for text in texts if text]
    write_atomically(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in kept))
    return kept


def train_bpe(texts: Iterable[str], vocab: int, folder: Path) -> None:
    """Train a byte-level BPE as GPT-2's and write its `tokenizer.json`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=False))


def train_wordpiece(texts: Iterable[str], vocab: int, folder: Path) -> None:
    """Train an uncased WordPiece as BERT's and write its `vocab.txt`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, limit_alphabet=400, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_atomically(folder / "vocab.txt", "".join(f"{piece}\n" for piece, _ in pieces))


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocab", type=int, default=4096)
    options = parser.parse_args()
    sources = {"wikitext": "wikitext-2", "openwebtext": "megatron-indexed", "race": "race"}
    readers = {"wikitext": wikitext, "openwebtext": openwebtext, "race": race}
    texts: list[str] = []
    for name, folder in sources.items():
        found = write_lines(options.output / f"{name}.jsonl", readers[name](options.data / folder))
        print(f"{name}: {len(found):,} documents, {sum(map(len, found)) / 1e6:.1f} million characters")
        texts += found
    train_bpe(texts, options.vocab, options.output / "bpe")
    train_wordpiece(texts, options.vocab, options.output / "wordpiece")


if __name__ == "__main__":
    main()
