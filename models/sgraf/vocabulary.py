"""Words as numbers: the vocabulary of SGRAF's authors, read, built, and applied to captions.

A file is JSON: {word2idx: {word: number}, idx2word: {"number": word}, idx: how many}. Its numbers have no meaningful
order, so it belongs to its model. One that is built here also says `sentences`: whether lines are divided into
sentences (Punkt) before words, as the authors do; that needs NLTK's data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stores.atomic import write_text
from stores.console import console
from stores.errors import StudentError
from stores.json_objects import parsed_object

FILE: Final = "vocabulary.json"
"""Its name beside a run's weights."""
PAD: Final = 0
SPECIAL: Final = ("<pad>", "<start>", "<end>", "<unk>")
"""The first words of every vocabulary, in the order of their numbers."""
LONGEST: Final = 128
"""Tokens of a caption; the longest of Flickr30K and COCO have fewer."""
SEEN: Final = 4
"""How often a word must occur to be in a vocabulary."""

_DOWNLOAD: Final = "python -m nltk.downloader punkt_tab"
_WITHOUT_SENTENCES: Final = (
    "NLTK's punkt_tab is not installed: a full stop within a caption stays with its word, which is then unknown. To "
    f"read captions as SGRAF's authors do: {_DOWNLOAD}"
)


class Vocabulary:
    """The numbers of words; each caption is its words between a start and an end."""

    def __init__(self, numbers: dict[str, int], sentences: bool, file: bytes = b"") -> None:
        self._numbers, self._sentences, self.file = numbers, sentences, file
        """The file as it was read, which goes with the weights that learned by it."""

    def __len__(self) -> int:
        return len(self._numbers)

    def tokens(self, texts: list[str]) -> Tensor:
        """Return the numbers of texts' words, padded with zeros: (n, LONGEST)."""
        unknown = self._numbers[SPECIAL[3]]
        start, end = (self._numbers[mark] for mark in SPECIAL[1:3])
        tokens = torch.zeros(len(texts), LONGEST, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = [self._numbers.get(word, unknown) for word in split(text, self._sentences)[: LONGEST - 2]]
            tokens[row, : len(words) + 2] = torch.tensor([start, *words, end])
        return tokens

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a vocabulary file.

        Raises:
            StudentError: it is absent, or none.
        """
        try:
            data = path.read_bytes()
            held = parsed_object(data)
            numbers: Any = held["word2idx"]
            whole = isinstance(numbers, dict) and sorted(numbers.values()) == list(range(len(numbers)))
            if not whole or numbers[SPECIAL[0]] != PAD or not all(mark in numbers for mark in SPECIAL):
                raise ValueError("its numbers are not 0 to its size, with <pad> 0, <start>, <end> and <unk> among them")
        except OSError as error:
            raise StudentError(f"cannot be read ({error.strerror})", path=path, expected="a vocabulary") from None
        except (ValueError, KeyError, TypeError) as error:
            expected = "a vocabulary: JSON with word2idx, as SGRAF's authors and `cusa-store vocabulary` write it"
            raise StudentError(f"{error}", path=path, expected=expected) from None
        sentences = bool(held.get("sentences", True))
        if sentences and not has_punkt():
            if "sentences" in held:
                advice = f"It was built by sentences, for which NLTK needs data: {_DOWNLOAD}"
                raise StudentError("NLTK's punkt_tab is not installed", path=path, advice=advice)
            console.print(_WITHOUT_SENTENCES, style="yellow")
            sentences = False
        return cls(numbers, sentences, data)

    @classmethod
    def of(cls, texts: Iterable[str], sentences: bool) -> Vocabulary:
        """Build one of the words that occur `SEEN` times or more, in their order."""
        counts = Counter(word for text in texts for word in split(text, sentences))
        words = sorted(word for word, count in counts.items() if count >= SEEN)
        return cls({word: number for number, word in enumerate((*SPECIAL, *words))}, sentences)

    @property
    def json(self) -> str:
        """What its file says."""
        words = {str(number): word for word, number in self._numbers.items()}
        held = {"word2idx": self._numbers, "idx2word": words, "idx": len(words), "sentences": self._sentences}
        return json.dumps(held, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_text(path, self.json)


def vocabulary_beside(path: Path, data: str) -> Path | None:
    """Return the vocabulary that lies beside a checkpoint: `<data>_vocab.json`, or the only one of such a name."""
    found = sorted(path.parent.glob("*vocab*.json"))
    # A stranger's file says what the data are called: it is compared with names, and never made one.
    if named := [file for file in found if data and file.name == f"{data}_vocab.json"]:
        return named[0]
    return found[0] if len(found) == 1 else None


def split(text: str, sentences: bool) -> list[str]:
    """Return a caption's words, ASCII letters in lower case, as NLTK divides them; of each sentence by itself if so."""
    words: list[str] = _nltk().word_tokenize(text.encode().lower().decode(), preserve_line=not sentences)
    return words


def has_punkt() -> bool:
    """Tell whether NLTK's data for sentences are there."""
    try:
        _nltk().data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _nltk() -> Any:
    try:
        import nltk  # here, since it is an extra
    except ImportError:
        raise StudentError("SGR and SAF divide captions by NLTK. Install it: pip install 'cusa[sgraf]'") from None
    return nltk
