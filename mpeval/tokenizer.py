"""GPT-2's byte-level BPE and BERT's WordPiece, from whichever of their file forms lies beside a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.errors import TokenizerError

FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("gpt2-vocab.json", "gpt2-merges.txt"),
)
"""The file names a GPT-2 tokenizer comes under, in order of preference."""
WORDPIECE = ("vocab.txt",)
"""The one a BERT's comes under, where there is no `tokenizer.json`."""
SETTINGS = "tokenizer_config.json"
"""What may lie beside a `vocab.txt` and say how text is normalized."""
OTHER_FILES = ("tokenizer.model", SETTINGS, "special_tokens_map.json", "added_tokens.json")
"""What else belongs to a tokenizer."""
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A loaded tokenizer; ids it gives are below `size`."""

    path: Path
    backend: Any
    size: int
    digest: str
    cache: Path | None = None
    """A folder for the ids of whole benchmarks, by content; none: they are made anew each time."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, no special tokens added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, computed in parallel."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of one text and the character at which each begins."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return list(encoding.ids), [start for start, _ in encoding.offsets]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Return of many texts, in parallel, the ids and which characters each is made of: the first, and the end."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [(list(encoding.ids), list(encoding.offsets)) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; ids past the vocabulary (padding rows) show as `<pad-row>`."""
        known = [int(token) for token in ids if token < self.size]
        text = str(self.backend.decode(known, skip_special_tokens=False))
        return text + "<pad-row>" * (len(ids) - len(known))

    def special_id(self, token: str) -> int:
        """Return the id of a token that texts do not produce, such as `[CLS]`.

        Raises:
            TokenizerError: there is none.
        """
        found = self.backend.token_to_id(token)
        if found is None:
            raise TokenizerError(
                f"the tokenizer in `{self.path}` has no `{token}` token",
                "give another tokenizer by `--tokenizer DIR`: a BERT's has [CLS], [SEP], [MASK] and [PAD], "
                "a GPT's <|endoftext|>",
            )
        return int(found)

    def pieces(self) -> list[str]:
        """Return the text of every token as the vocabulary spells it, in the order of ids."""
        return [self.backend.id_to_token(token) or "" for token in range(self.size)]

    def continuations(self) -> list[bool]:
        """Tell of every token whether it goes on with the word before it, as WordPiece's `##` tokens do."""
        return [piece.startswith("##") for piece in self.pieces()]

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`."""
        token = self.backend.token_to_id(END_OF_TEXT)
        if token is None:
            raise TokenizerError(
                f"`{self.path}` has no `{END_OF_TEXT}` token, which this protocol begins texts with",
                "choose another protocol, or the checkpoint's own tokenizer",
            )
        return int(token)


def files_beside(folders: Sequence[Path]) -> dict[str, Path]:
    """Return every file of a tokenizer that lies in one of the folders, the first of each name."""
    names = [name for names in (*FILES, WORDPIECE, OTHER_FILES) for name in names]
    found = {name: folder / name for folder in reversed(folders) for name in names if (folder / name).is_file()}
    return {name: found[name] for name in names if name in found}


def find_tokenizer(given: Path | None, beside: Sequence[Path]) -> Tokenizer:
    """Load the tokenizer at `given`, or the first one found in the folders `beside`.

    Raises:
        TokenizerError: none found, or its files cannot be read.
    """
    folders = [given] if given is not None else list(dict.fromkeys(beside))
    for folder in folders:
        if folder.is_file() and (folder.name,) in {FILES[0], WORDPIECE}:
            return _load((folder,))
        for names in (*FILES, WORDPIECE):
            paths = tuple(folder / name for name in names)
            if all(path.is_file() for path in paths):
                return _load(paths)
    wanted = " or ".join(" + ".join(f"`{name}`" for name in names) for names in (*FILES[:3], WORDPIECE))
    if given is not None and not given.exists():
        raise TokenizerError(f"no such tokenizer: `{given}` does not exist", f"pass a folder with {wanted}")
    where = ", ".join(f"`{folder}`" for folder in folders)
    raise TokenizerError(f"no tokenizer in {where}", f"give `--tokenizer DIR`, a folder with {wanted}")


def _load(paths: tuple[Path, ...]) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    try:
        if (paths[0].name,) == WORDPIECE:
            backend = _wordpiece(paths[0])
        elif len(paths) == 1:
            backend = Backend.from_file(str(paths[0]))
        else:
            backend = Backend(models.BPE.from_file(str(paths[0]), str(paths[1])))
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
    except TokenizerError:
        raise
    except Exception as error:  # the Rust side raises bare Exception for any unreadable file
        names = ", ".join(f"`{path}`" for path in paths)
        raise TokenizerError(f"the tokenizer in {names} cannot be read: {error}", "copy its files again") from error
    # a file may ask for every text to be cut or filled up to a length, as those for sentence vectors do
    backend.no_truncation()
    backend.no_padding()
    digest = hashlib.sha256()
    settings = paths[0].with_name(SETTINGS)
    for path in (*paths, settings) if (paths[0].name,) == WORDPIECE and settings.is_file() else paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    ids = backend.get_vocab(with_added_tokens=True).values()
    return Tokenizer(
        path=paths[0].parent,
        backend=backend,
        size=1 + max(ids, default=-1),
        digest="sha256:" + digest.hexdigest(),
    )


def _wordpiece(path: Path) -> Any:
    """Return BERT's tokenizer over a `vocab.txt`, normalizing as `tokenizer_config.json` beside it says.

    Without that file letters are lowered unless a token of the vocabulary, special ones like `[CLS]` apart, has a
    capital: a lowered text could never use it.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    # not `splitlines`, which also splits at characters that are tokens of the multilingual vocabularies
    pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    settings = path.with_name(SETTINGS)
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    capital = any(piece != piece.lower() for piece in pieces if not re.fullmatch(r"\[.+\]", piece))
    unknown = known.get("unk_token", "[UNK]")
    if unknown not in pieces:
        raise TokenizerError(f"`{path}` has no `{unknown}` token, so it is no BERT's", "copy the file again")
    backend = Backend(models.WordPiece({piece: token for token, piece in enumerate(pieces)}, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=known.get("do_lower_case", not capital),
        strip_accents=known.get("strip_accents"),
        handle_chinese_chars=known.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def special_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids that begin and end a text: what `tokenizer_config.json` names, else `<|endoftext|>` for both.

    Where only the end is named, it begins a text too.

    Raises:
        TokenizerError: the tokenizer has neither.
    """
    settings = tokenizer.path / SETTINGS
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}

    def named(key: str) -> int | None:
        token = known.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.backend.token_to_id(token) if isinstance(token, str) else None
        return None if found is None else int(found)

    end = named("eos_token")
    end = tokenizer.end_of_text if end is None else end
    begin = named("bos_token")
    return (end if begin is None else begin), end


def check_fits(tokenizer: Tokenizer, *, vocab: int | None, padded_vocab: int) -> None:
    """Refuse a tokenizer that is not the checkpoint's: `vocab` is its true size, None where it is not known."""
    if vocab is not None and tokenizer.size == vocab:
        return
    if vocab is None and tokenizer.size <= padded_vocab:
        return
    has = f"{vocab} tokens" if vocab is not None else f"a table of {padded_vocab} rows"
    raise TokenizerError(
        f"the tokenizer in `{tokenizer.path}` has {tokenizer.size} tokens, the checkpoint {has}",
        "give the one it was trained with by `--tokenizer DIR`"
        + (f", or `--set vocab={tokenizer.size}` if the file is wrong" if tokenizer.size <= padded_vocab else ""),
    )
