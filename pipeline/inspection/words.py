"""cusa-store vocabulary: the words of a store's captions, numbered for SGR and SAF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.sgraf.vocabulary import SEEN, Vocabulary, has_punkt
from stores import ParameterError, Store
from stores.columns import Column


def write_vocabulary(path: Path, splits: Sequence[str], out: Path) -> str:
    """Write the vocabulary of the captions of some splits of the store at `path`; return what to say of it.

    Raises:
        StoreError: there is no such store or split.
        ParameterError: there is another file at `out`.
    """
    store = Store.open(path)
    held = store.manifest.splits
    if absent := [split for split in splits if split not in held]:
        raise ParameterError(where="--split", found=", ".join(absent), expected=f"some of {', '.join(held)}")
    texts = Column(store.captions["text"])
    sentences = has_punkt()
    vocabulary = Vocabulary.of((text for split in splits for text in _texts(store, texts, split)), sentences)
    if out.exists() and out.read_bytes() != vocabulary.json.encode():
        raise ParameterError("another file is there", path=out, advice="Choose another place with --out.")
    vocabulary.write(out)
    how = "sentence by sentence" if sentences else "line by line, as NLTK's punkt_tab is not installed"
    return f"{len(vocabulary):,} words, seen {SEEN} times or more in {' and '.join(splits)}, divided {how}: {out}"


def _texts(store: Store, texts: Column, split: str) -> Sequence[str]:
    rows = store.rows(split, "caption")
    found: list[str] = texts.run(int(rows[0]), len(rows)).to_pylist()
    return found
