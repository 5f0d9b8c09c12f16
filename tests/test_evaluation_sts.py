"""STS: the two layouts, the published correlation of MiniLM, and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from refusals import refused
from scipy.stats import spearmanr

from stores import CusaError
from train.evaluation.models import load_model
from train.evaluation.result import DataSetError
from train.evaluation.sts import measure_sts
from train.evaluation.sts_files import PAIRS, SUBSETS, read_pairs

ROWS = [("0.5", "a red cat", "blue sky"), ("4", "a dog runs", "a dog ran"), ("2.5", "an egg", "a big egg is here")]


class Letters:
    """How often each letter occurs in a text."""

    name = "letters"
    modalities = ("text",)

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return np.array([[text.count(letter) for letter in letters] for text in texts], np.float32)


def write(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def plain(folder: Path, name: str) -> None:
    for file in [f"{name}.{subset}.tsv" for subset in SUBSETS.get(name, ())] or [f"{name}.tsv"]:
        write(folder / file, ["\t".join(row) for row in ROWS] + (["\tnot\trated"] if name in SUBSETS else []))


def senteval(folder: Path) -> None:
    """All seven sets as SentEval's script leaves them, three rated pairs a subset."""
    base = folder / "data" / "downstream"
    for name, subsets in SUBSETS.items():
        for subset in subsets:
            place = base / "STS" / f"{name}-en-test"
            write(place / f"STS.input.{subset}.txt", [f"{a}\t{b}" for _, a, b in ROWS] + ["not\trated"])
            write(place / f"STS.gs.{subset}.txt", [gold for gold, _, _ in ROWS] + [""])
    benchmark = ["\t".join(("main", "file", "2012test", "0024", *row, "licence")) for row in ROWS]
    write(base / "STS" / "STSBenchmark" / "sts-test.csv", benchmark)
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    rows = [f"{number}\t{a}\t{b}\t{gold}\tNEUTRAL" for number, (gold, a, b) in enumerate(ROWS)]
    write(base / "SICK" / "SICK_test_annotated.txt", [header, *rows], "\r\n")


def test_minilm_has_its_published_correlation_on_sts13(shared_data: Path, tmp_path: Path) -> None:
    for path in (shared_data / "sts").glob("STS13.*.tsv"):
        (tmp_path / path.name).symlink_to(path)
    result = measure_sts(load_model("minilm", device="cpu", precision="fp32"), tmp_path)
    assert result.figures == {"STS13": pytest.approx(80.6, abs=0.1)}
    assert result.counts == {"STS13": {"pairs": 1500}}
    assert len(result.messages) == 6
    assert all("Get it from https://" in message for message in result.messages)


@pytest.mark.soak
def test_minilm_has_its_published_correlation_on_sick(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "SICK_test_annotated.txt").symlink_to(shared_data / "sts" / "SICK_test_annotated.txt")
    result = measure_sts(load_model("minilm", device="cpu", precision="fp32"), tmp_path)
    assert result.figures == {"SICK-R": pytest.approx(77.15, abs=0.1)}
    assert result.counts == {"SICK-R": {"pairs": 4927}}


def test_both_layouts_give_the_same_figures_and_the_average_of_seven(tmp_path: Path) -> None:
    senteval(tmp_path / "clone")
    for name in PAIRS:
        plain(tmp_path / "plain", name)
    one, other = measure_sts(Letters(), tmp_path / "clone"), measure_sts(Letters(), tmp_path / "plain")
    assert one == other
    assert list(one.figures) == [*PAIRS, "average of these"]
    assert one.counts["STS12"] == {"pairs": 15}
    assert "STS12: 15 pairs found, 3,108 published. The figure is not comparable." in one.messages
    assert one.figures["average of these"] == pytest.approx(np.mean([one.figures[name] for name in PAIRS]))
    assert one.messages[-1] == "STS16: 5 pairs without a gold score are left out."
    assert measure_sts(Letters(), tmp_path / "clone" / "data" / "downstream") == one


def test_a_year_is_one_correlation_over_all_subsets(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["sun", "moon", "tree", "sea", "stone", "bird"]
    gold, cosines, each = [], [], []
    for subset in SUBSETS["STS13"]:
        texts = [[" ".join(random.choice(words, 3)) for _ in range(9)] for _ in range(2)]
        scores = random.random(9)
        write(tmp_path / f"STS13.{subset}.tsv", [f"{g}\t{a}\t{b}" for g, a, b in zip(scores, *texts, strict=True)])
        first, second = (Letters().encode_texts(side) for side in texts)
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)]
        gold, cosines = [*gold, *scores], [*cosines, *cosine]
        each.append(spearmanr(cosine, scores).statistic)
    measured = measure_sts(Letters(), tmp_path).figures["STS13"]
    assert measured == pytest.approx(100 * spearmanr(cosines, gold).statistic)
    assert measured != pytest.approx(100 * np.mean(each), abs=1.0), "the mean over subsets would be another figure"


def test_lines_end_at_line_feeds_alone_and_quotes_stay(tmp_path: Path) -> None:
    odd = ['1\t"an unpaired quote\ttwo\u2028lines', "2\tone\u0085word\ta b", '3\t""\t" "']
    write(tmp_path / "STS-B.tsv", odd, "\r\n")
    pairs = read_pairs("STS-B", tmp_path)
    assert pairs.gold == [1.0, 2.0, 3.0]
    assert pairs.first == ['"an unpaired quote', "one\u0085word", '""']
    assert pairs.second == ["two\u2028lines", "a b", '" "']


@pytest.mark.parametrize(
    ("line", "found", "expected"),
    [
        ("high\ta\tb", "high", "a number"),
        ("inf\ta\tb", "inf", "a number"),
        ("1\ta", "1\ta", "<score> TAB <sentence> TAB <sentence>"),
        ("\n1\ta\tb", "", "<score> TAB <sentence> TAB <sentence>"),
    ],
    ids=["word", "infinite", "two-columns", "blank-line"],
)
def test_a_broken_line_is_named_and_the_other_sets_are_measured(
    tmp_path: Path, line: str, found: str, expected: str
) -> None:
    plain(tmp_path, "STS-B")
    plain(tmp_path, "SICK-R")
    write(tmp_path / "STS-B.tsv", ["\t".join(row) for row in ROWS] + [line])
    with refused(DataSetError, path=tmp_path / "STS-B.tsv", where=4, found=found, expected=expected):
        read_pairs("STS-B", tmp_path)
    result = measure_sts(Letters(), tmp_path)
    assert list(result.figures) == ["SICK-R"]
    assert any("STS-B.tsv, line 4" in message for message in result.messages)


def test_a_year_without_all_its_subsets_is_not_measured(tmp_path: Path) -> None:
    plain(tmp_path, "STS14")
    (tmp_path / "STS14.images.tsv").unlink()
    with refused(DataSetError, path=tmp_path, where="STS14", problem="no STS14.images.tsv"):
        read_pairs("STS14", tmp_path)
    senteval(tmp_path)
    (tmp_path / "data/downstream/STS/STS16-en-test/STS.gs.headlines.txt").unlink()
    with refused(DataSetError, where="STS16", problem="no STS.gs.headlines.txt"):
        read_pairs("STS16", tmp_path)


def test_scores_that_do_not_go_with_the_sentences_are_refused(tmp_path: Path) -> None:
    senteval(tmp_path)
    path = tmp_path / "data/downstream/STS/STS15-en-test/STS.gs.belief.txt"
    write(path, ["1", "2"])
    with refused(DataSetError, path=path, found=2, expected="4, as in STS.input.belief.txt"):
        read_pairs("STS15", tmp_path)


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "STS-B.tsv").write_bytes(b"1\t\xff\xfe\tb\n")
    with refused(DataSetError, path=tmp_path / "STS-B.tsv", expected="UTF-8 text"):
        read_pairs("STS-B", tmp_path)


def test_a_folder_that_is_not_there_names_where_to_get_each_set(tmp_path: Path) -> None:
    result = measure_sts(Letters(), tmp_path / "nowhere")
    assert result.figures == {}
    assert len(result.messages) == 7
    assert "STS/STS12-en-test/STS.input.<subset>.txt" in result.messages[0]
    assert "https://github.com/facebookresearch/SentEval" in result.messages[0]


def test_blank_lines_at_the_end_cost_nothing_and_an_empty_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "STS-B.tsv").write_text("1\ta\tb\n2\tc\td\n\n\r\n")
    assert read_pairs("STS-B", tmp_path).gold == [1.0, 2.0]
    (tmp_path / "STS-B.tsv").write_text("\n")
    with refused(DataSetError, path=tmp_path / "STS-B.tsv", problem="empty"):
        read_pairs("STS-B", tmp_path)
    (tmp_path / "SICK_test_annotated.txt").write_text("pair_ID\tsentence_A\tsentence_B\n1\ta\tb\n")
    with refused(DataSetError, where=1, problem="columns", expected="relatedness_score too"):
        read_pairs("SICK-R", tmp_path)


def test_no_differences_and_no_finite_embeddings_are_refused(tmp_path: Path) -> None:
    class Same(Letters):
        def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
            return np.ones((len(texts), 2), np.float32)

    class Broken(Letters):
        def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
            return np.full((len(texts), 2), np.nan, np.float32)

    plain(tmp_path, "STS-B")
    assert any("pairs are all equally similar" in message for message in measure_sts(Same(), tmp_path).messages)
    with pytest.raises(CusaError, match="not finite"):
        measure_sts(Broken(), tmp_path)
    write(tmp_path / "STS-B.tsv", ["1\ta\tb", "1\tc\td"])
    assert any("do not differ in their gold scores" in message for message in measure_sts(Letters(), tmp_path).messages)


def test_a_model_of_images_alone_is_refused() -> None:
    with pytest.raises(CusaError, match="hog-color embeds images; the task sts needs one of texts"):
        measure_sts(load_model("hog-color", device="cpu"), Path())
