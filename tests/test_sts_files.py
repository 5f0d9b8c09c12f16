"""STS files as published, and as people save them: unrated pairs, columns beside, headers, marks, line ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused
from test_evaluation_sts import Letters, write

from train.evaluation.result import DataSetError
from train.evaluation.sts import measure_sts
from train.evaluation.sts_files import PAIRS, SUBSETS, read_pairs

PLACE = Path("STS/STS16-en-test")


def year(folder: Path, before: str = "STS", end: str = "\n") -> None:
    """STS16 as SemEval has it: the sentences' origins in two columns more, and most pairs not rated."""
    for subset in SUBSETS["STS16"]:
        pairs = ["a dog runs\ta dog ran\turl\turl", "one pair that\tnobody rated\turl\turl", '"a\tan egg\turl\turl']
        write(folder / PLACE / f"{before}.input.{subset}.txt", pairs, end)
        write(folder / PLACE / f"{before}.gs.{subset}.txt", ["4", " ", "0.5"], end)


@pytest.mark.parametrize("before", ["STS", "STS2016"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_a_year_as_semeval_publishes_it(tmp_path: Path, before: str, end: str) -> None:
    year(tmp_path, before, end)
    pairs = read_pairs("STS16", tmp_path)
    assert (pairs.gold, pairs.unrated) == ([4.0, 0.5] * 5, 5)
    assert (pairs.first[:2], pairs.second[:2]) == (["a dog runs", '"a'], ["a dog ran", "an egg"])


def test_unrated_pairs_are_left_out_of_plain_files_and_said(tmp_path: Path) -> None:
    rows = [
        "\ta first line\tthat nobody rated",
        "4\ta dog runs\ta dog ran",
        "  \tblank\tscore",
        "NaN\tas pandas\twrites it",
        "1.5\tan egg\ta cat",
        "\tx\ty",
    ]
    for subset in SUBSETS["STS13"]:
        write(tmp_path / f"STS13.{subset}.tsv", rows, "\r\n")
    write(tmp_path / "STS-B.tsv", rows)
    result = measure_sts(Letters(), tmp_path)
    assert result.counts == {"STS13": {"pairs": 6}, "STS-B": {"pairs": 2}}
    assert result.messages[-2:] == [
        "STS13: 12 pairs without a gold score are left out.",
        "STS-B: 4 pairs without a gold score are left out.",
    ]
    alone = tmp_path / "alone"
    write(alone / "STS-B.tsv", [rows[1], rows[4]])
    assert measure_sts(Letters(), alone).figures["STS-B"] == result.figures["STS-B"]


def test_a_set_as_published_is_comparable_though_some_pairs_are_unrated(tmp_path: Path) -> None:
    for name, count in PAIRS.items():
        files = [f"{name}.{subset}.tsv" for subset in SUBSETS.get(name, ())] or [f"{name}.tsv"]
        for number, file in enumerate(files):
            rated = [f"{n % 5}\t{'a' * (n % 7 + 1)}b\tab" for n in range(count if number == 0 else 0)]
            write(tmp_path / file, [*rated, "\tnot\trated"])
    result = measure_sts(Letters(), tmp_path)
    assert list(result.figures) == [*PAIRS, "average"]
    assert "STS12: 5 pairs without a gold score are left out." in result.messages


def test_a_set_that_nobody_rated_is_said(tmp_path: Path) -> None:
    write(tmp_path / "STS-B.tsv", ["\ta\tb", "\tc\td"])
    with refused(DataSetError, path=tmp_path, where="STS-B", problem="none of the 2 pairs has a score"):
        read_pairs("STS-B", tmp_path)


def test_blank_lines_behind_the_last_pair_are_no_pairs(tmp_path: Path) -> None:
    year(tmp_path)
    for path in (tmp_path / PLACE / "STS.gs.headlines.txt", tmp_path / PLACE / "STS.input.plagiarism.txt"):
        path.write_text(path.read_text() + "\n\n")
    assert read_pairs("STS16", tmp_path).unrated == 5
    (tmp_path / PLACE / "STS.gs.headlines.txt").write_text("4\n\n0.5\n3\n")
    with refused(DataSetError, found=4, expected="3, as in STS.input.headlines.txt"):
        read_pairs("STS16", tmp_path)


def test_headers_marks_and_columns_beside(tmp_path: Path) -> None:
    rows = [("4", "a dog", "a cat"), ("", "not", "rated"), ("1", "an egg", "a sea")]
    benchmark = ["\t".join(("main", "MSRvid", "2012test", "0024", *row, "licence", "of both")) for row in rows]
    glue = [
        "index\tgenre\tsentence1\tsentence2\tscore",
        *(f"{n}\tx\t{a}\t{b}\t{g}" for n, (g, a, b) in enumerate(rows)),
    ]
    sick = [
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tjudgment",
        *(f"1\t{a}\t{b}\t{g}\tN" for g, a, b in rows),
    ]
    plain = ["score\tsentence1\tsentence2", *("\t".join(row) for row in rows)]
    for name, lines in (("benchmark", benchmark), ("glue", glue), ("sick", sick), ("plain", plain)):
        for mark in ("", "\ufeff"):
            write(tmp_path / name / "STS-B.tsv", [mark + lines[0], *lines[1:]])
            pairs = read_pairs("STS-B", tmp_path / name)
            assert (pairs.gold, pairs.first, pairs.unrated) == ([4.0, 1.0], ["a dog", "an egg"], 1), name
    write(tmp_path / "STS-B.tsv", ["score\tsentence1\tsecond", "4\ta\tb"])
    with refused(DataSetError, where=1, problem="columns", expected="sentence2 too"):
        read_pairs("STS-B", tmp_path)
