"""The embedded data set: deterministic, and its truth is evaluated from scenes, never from words."""

from __future__ import annotations

import io
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from pipeline.sources.scenes.drawing import draw, png
from pipeline.sources.scenes.source import ScenesSource
from pipeline.sources.scenes.truth import relevance, satisfies, similarity, similarity_pairs
from pipeline.sources.scenes.world import OPEN, VALUES, draw_scene, object_table
from stores.parameters import Scenes

RED_CIRCLE = (0, 0, OPEN, OPEN)
BIG_RED_CIRCLE = (0, 0, 1, OPEN)
BLUE_STAR = (3, 2, OPEN, OPEN)
SOMETHING_RED = (OPEN, 0, OPEN, OPEN)


def table(*scenes: list[tuple[int, int, int, int]]) -> np.ndarray:
    objects = np.full((len(scenes), 3, 4), OPEN, dtype=np.int8)
    for row, things in enumerate(scenes):
        objects[row, : len(things)] = things
    return objects


def test_a_description_needs_an_object_of_its_own() -> None:
    one = table([(0, 0, 1, 2)], [(0, 0, 1, 2), (3, 2, 0, 1)], [(0, 0, 1, 2), (0, 0, 0, 4)], [(1, 0, 1, 2)])
    assert satisfies((RED_CIRCLE,), one).tolist() == [True, True, True, False]
    assert satisfies((RED_CIRCLE, RED_CIRCLE), one).tolist() == [False, False, True, False]
    assert satisfies((BLUE_STAR, RED_CIRCLE), one).tolist() == [False, True, False, False]
    assert satisfies((SOMETHING_RED,), one).tolist() == [True, True, True, True]


def test_relevance_equals_checking_every_assignment() -> None:
    scenes = [draw_scene(5, 0, number) for number in range(60)]
    meanings = [meaning for scene in scenes for meaning in scene.captions]
    found = set(map(tuple, relevance(meanings, object_table(scenes)).tolist()))
    expected = {
        (caption, row)
        for caption, meaning in enumerate(meanings)
        for row, scene in enumerate(scenes)
        if any(
            all(
                want in (OPEN, have)
                for d, o in zip(meaning, chosen, strict=True)
                for want, have in zip(d, o, strict=True)
            )
            for chosen in permutations(scene.objects, len(meaning))
        )
    }
    assert found == expected
    assert {(caption, caption // 5) for caption in range(len(meanings))} <= found
    assert len(found) > 1.5 * len(meanings)


def test_similarity_by_hand() -> None:
    assert similarity((RED_CIRCLE,), (RED_CIRCLE,)) == 1.0
    assert similarity((RED_CIRCLE,), (BIG_RED_CIRCLE,)) == pytest.approx(2 / 3)
    assert similarity((RED_CIRCLE,), (BLUE_STAR,)) == 0.0
    assert similarity((BLUE_STAR, RED_CIRCLE), (RED_CIRCLE,)) == pytest.approx(1 / 2)
    assert similarity((RED_CIRCLE, BLUE_STAR), (BLUE_STAR, BIG_RED_CIRCLE)) == pytest.approx((1 + 2 / 3) / 2)


def test_graded_pairs_cover_the_grades() -> None:
    meanings = [meaning for number in range(200) for meaning in draw_scene(0, 0, number).captions]
    pairs = similarity_pairs(meanings, 500, (0,))
    first, second, grade = pairs[0]
    assert similarity(meanings[int(first)], meanings[int(second)]) == grade
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (np.histogram(pairs[:, 2], bins=[0, 0.2, 0.4, 0.6, 0.8, 1.01])[0] > 10).all()


def test_the_same_seed_gives_the_same_bytes_and_sizes_are_independent() -> None:
    small, large = (ScenesSource(Scenes(seed=3, train=count, val=2, test=0)) for count in (4, 9))
    assert small.splits == ("train", "val")
    for split, count in (("train", 4), ("val", 2)):
        few = list(small.records(split))
        assert len(few) == count
        for one, other in zip(few, large.records(split), strict=False):
            assert one.source_id == other.source_id
            assert one.captions == other.captions
            assert one.image.read() == other.image.read()
    other_seed = next(ScenesSource(Scenes(seed=4, train=4)).records("train"))
    assert other_seed.image.read() != next(small.records("train")).image.read()


def test_pictures_are_drawn_and_captions_name_what_is_there() -> None:
    scenes = [draw_scene(0, 0, number) for number in range(50)]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        picture = Image.open(io.BytesIO(png(draw(scene, 64))))
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        assert np.asarray(picture).std() > 5
        assert len(scene.captions) == 5
        assert len({place for *_, place in scene.objects}) == len(scene.objects)
    captions = ScenesSource(Scenes(train=50)).records("train")
    words = " ".join(text for record in captions for text in record.captions)
    assert all(value in words for value in ("circle", "red", "small"))
    assert len(VALUES["shape"]) == len(VALUES["colour"]) == 8


def test_further_modalities_miss_what_the_setting_says_and_unseen_classes_are_of_the_test_split_alone() -> None:
    """And neither changes a picture: those of seen classes are as without the settings."""
    names = ["attributes", "speech", "class_embedding"]
    settings = Scenes(train=300, val=30, test=300, modalities=names, missing=0.4, unseen=12)
    source, plain = ScenesSource(settings), ScenesSource(Scenes(train=300, val=30, test=300))
    labels = {split: [record.label for record in source.records(split)] for split in source.splits}
    assert len(set(labels["test"]) - set(labels["train"])) >= 12
    before = [record.label for record in plain.records("train")]
    unseen = set(before) - set(labels["train"])
    assert len(unseen) == 12
    same = [one == other for one, other in zip(before, labels["train"], strict=True)]
    assert same == [label not in unseen for label in before]
    features = source.features
    ids = [record.source_id for record in source.records("train")]
    for name, rows in (("attributes", 1), ("speech", 5)):
        found = np.stack([features[name].of(one) for one in ids])
        assert found.shape == (300, rows, *features[name].shape)
        absent = np.isnan(found).any(axis=2)
        assert absent.mean() == pytest.approx(0.4, abs=0.08)
        assert not np.isnan(features[name].of("test-0")).any()
    first, second = (features["class_embedding"].of(name)[0] for name in ("red circle", "red star"))
    assert float(first @ second) > 0.2 > float(first @ features["class_embedding"].of("blue star")[0])
    assert np.array_equal(features["speech"].of("test-3"), features["speech"].of("test-3"))
