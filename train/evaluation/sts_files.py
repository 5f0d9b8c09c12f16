r"""The seven test sets of semantic textual similarity, from SentEval's folders or from plain tab-separated files.

SentEval keeps STS/STS12-en-test/STS.input.<subset>.txt (two sentences a line) beside STS.gs.<subset>.txt (a score a
line), STS/STSBenchmark/sts-test.csv and SICK/SICK_test_annotated.txt. Plain files are <set>.<subset>.tsv or <set>.tsv:
score, sentence, sentence; and the two last files under their own names. The layout is recognised by the folder's
content. Quotes are not stripped: sentences contain unpaired ones. In every layout a pair whose score is blank was not
rated: it is left out, and counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from train.evaluation.lines import read_lines, read_rows, split_line
from train.evaluation.result import DataSetError

SUBSETS: Final = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "OnWN", "headlines"),
    "STS14": ("OnWN", "deft-forum", "deft-news", "headlines", "images", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
"""What each year's figure is over, all subsets concatenated. STS13's SMT is not free, and is in nobody's figure."""
PUBLISHED: Final = {name: f"STS/{name}-en-test" for name in SUBSETS} | {
    "STS-B": "STS/STSBenchmark/sts-test.csv", "SICK-R": "SICK/SICK_test_annotated.txt"
}  # fmt: skip
"""Where each set lies in SentEval's data folder."""
PAIRS: Final = {
    "STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS-B": 1379, "SICK-R": 4927
}  # fmt: skip
"""The rated pairs of each set, as published."""
BASES: Final = ("", "downstream", "data/downstream")
"""Where SentEval's folders lie in the one that is named: its data folder itself, or SentEval as cloned."""
WHERE: Final = "https://github.com/facebookresearch/SentEval (data/downstream/get_transfer_data.bash)"
PLAIN: Final = "<score> TAB <sentence> TAB <sentence>"
BENCHMARK: Final = "<genre> TAB <file> TAB <year> TAB <number> TAB <score> TAB <sentence> TAB <sentence>"
_UNRATED: Final = {"", "nan", "na", "n/a", "--", "null", "none"}
HEADERS: Final = (("sentence_A", "sentence_B", "relatedness_score"), ("sentence1", "sentence2", "score"))
"""SICK's names of columns, and GLUE's."""


@dataclass
class SentencePairs:
    """Rated pairs of sentences; the lists are of one length."""

    gold: list[float] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    unrated: int = 0
    """How many pairs were left out, without a rating."""

    def add(self, score: str, first: str, second: str, path: Path, number: int) -> None:
        """Add a pair, whose score stands in line `number` of the file `path`.

        Raises:
            DataSetError: the score is not a finite number.
        """
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataSetError("score", path=path, where=number, found=score, expected="a number")
        self.gold.append(value)
        self.first.append(first)
        self.second.append(second)


def read_pairs(name: str, folder: Path) -> SentencePairs:
    """Return the pairs of the set `name`, one of `PAIRS`, in whichever layout `folder` has.

    Raises:
        DataSetError: it is missing (the message says where to get it, and the layout), incomplete or broken, or none
            of its pairs is rated.
    """
    pairs = SentencePairs()
    _add_set(name, folder, pairs)
    if not pairs.gold:
        raise DataSetError(f"none of the {pairs.unrated:,} pairs has a score", path=folder, where=name)
    return pairs


def _add_set(name: str, folder: Path, pairs: SentencePairs) -> None:
    by_subset = [folder / f"{name}.{subset}.tsv" for subset in SUBSETS.get(name, ())]
    place, whole = _published(name, folder), folder / f"{name}.tsv"
    if place and name in SUBSETS:
        _add_year(name, place, pairs)
    elif place or whole.is_file():
        _add_file(place or whole, pairs)
    elif any(path.is_file() for path in by_subset):
        for path in _complete(name, folder, by_subset):
            _add_file(path, pairs)
    else:
        raise DataSetError("not there", path=folder, where=name, expected=_layout(name), advice=f"Get it from {WHERE}.")


def _published(name: str, folder: Path) -> Path | None:
    """Return where a set lies as SentEval has it: a year's folder or a file, with or without the folders above it."""
    parts = PUBLISHED[name].split("/")
    places = (folder.joinpath(base, *parts[start:]) for base in BASES for start in range(len(parts)))
    return next((place for place in places if (place.is_dir() if name in SUBSETS else place.is_file())), None)


def _add_year(name: str, place: Path, pairs: SentencePairs) -> None:
    """Add a year's subsets from SentEval's folder: STS.input.<subset>.txt and STS.gs.<subset>.txt, line by line."""
    # SemEval itself calls the files of 2016 so.
    before = f"STS20{name[3:]}" if any(place.glob(f"STS20{name[3:]}.input.*.txt")) else "STS"
    inputs = [place / f"{before}.input.{subset}.txt" for subset in SUBSETS[name]]
    scores = [place / f"{before}.gs.{subset}.txt" for subset in SUBSETS[name]]
    _complete(name, place, [*inputs, *scores])
    for path, gold in zip(inputs, scores, strict=True):
        sentences, ratings = read_rows(path), read_lines(gold)
        # A blank line means an unrated pair, so only blank lines beyond the last pair may differ.
        if len(ratings) < len(sentences) or any(rating.strip() for rating in ratings[len(sentences) :]):
            expected = f"{len(sentences)}, as in {path.name}"
            raise DataSetError("lines", path=gold, found=len(ratings), expected=expected)
        for number, (line, rating) in enumerate(zip(sentences, ratings, strict=False), start=1):
            if is_unrated(rating):
                pairs.unrated += bool(line.strip())  # blank in both files, it is no pair
                continue
            first, second, *_ = split_line(path, number, line, 2, "<sentence> TAB <sentence>", tabs=True)
            pairs.add(rating, first, second, gold, number)


def _add_file(path: Path, pairs: SentencePairs) -> None:
    """Add the pairs of one file; its first line tells the columns."""
    lines = read_rows(path)
    if not lines:
        raise DataSetError("empty", path=path, expected=PLAIN)
    header = lines[0].split("\t")
    known = max(HEADERS, key=lambda names: len(set(names) & set(header)))
    lacking = sorted(set(known) - set(header))
    if len(lacking) == 1:
        raise DataSetError("columns", path=path, where=1, found=header, expected=f"{lacking[0]} too")
    if not lacking:
        columns, expected, start = [header.index(name) for name in known], " TAB ".join(header), 2
    elif len(header) >= 7:
        columns, expected, start = [5, 6, 4], BENCHMARK, 1
    else:
        columns, expected, start = [1, 2, 0], PLAIN, 1
    for number, line in enumerate(lines[start - 1 :], start=start):
        found = split_line(path, number, line, max(columns) + 1, expected, tabs=True)
        first, second, score = (found[column] for column in columns)
        if not is_unrated(score):
            pairs.add(score, first, second, path, number)
        else:
            pairs.unrated += 1


def _complete(name: str, place: Path, files: list[Path]) -> list[Path]:
    if missing := [path.name for path in files if not path.is_file()]:
        raise DataSetError(f"no {', '.join(missing)}", path=place, where=name, expected="all subsets")
    return files


def _layout(name: str) -> str:
    if name not in SUBSETS:
        return f"SentEval's {PUBLISHED[name]}, that file itself, or {name}.tsv ({PLAIN})"
    return (
        f"SentEval's {PUBLISHED[name]}/STS.input.<subset>.txt and STS.gs.<subset>.txt, or {name}.<subset>.tsv "
        f"({PLAIN}), for the subsets {', '.join(SUBSETS[name])}"
    )


def is_unrated(score: str) -> bool:
    """Tell whether a pair was not rated: SemEval leaves the score blank, tables have words for it."""
    return score.strip().lower() in _UNRATED
