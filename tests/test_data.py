"""Batches: the right images, texts and teachers' features by number, augmented the same wherever it is done."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_scenes
from open_clip import image_transform
from PIL import Image
from refusals import refused
from torch import Tensor

from models.encoded import tensors_of, with_tensors
from models.inputs import Stored
from models.students import as_student, load_student
from pipeline.extract import extract
from stores import ExtractParameters, Store, StoreError, TrainingError
from stores.images import decode_rgb
from stores.modality import Level
from stores.parameters import Data, Extract, FeatureFile, Student, Teachers, Train
from train.data.batches import Batch, TrainingData
from train.data.mixture import Mixture

CPU = torch.device("cpu")
SLUGS = ("tiny_teachers-mean_colour", "tiny_teachers-no_e")
TEACHERS = dict(zip(("image", "text"), SLUGS, strict=True))
SETTINGS = Train(batch_size=12, shuffle_shards=2)


class Augmenting:
    """A student's outer side, whose training transform draws from all three generators."""

    embed_dim = 4
    train_transform: Any
    eval_transform = staticmethod(image_transform(24, is_train=False))

    def __init__(self) -> None:
        self.train_transform = noisy

    @staticmethod
    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[*text.encode()[:80], *[0] * (80 - len(text))] for text in texts])


CROPPED = image_transform(24, is_train=True)


def noisy(image: Image.Image) -> Tensor:
    cropped: Tensor = CROPPED(image)
    return cropped + random.random() + np.random.random() + torch.rand(())


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """Stores of 48 and 20 train scenes with the same teachers, of which the text teacher fails on some captions."""
    made = []
    for number, train in enumerate((48, 20)):
        path = tmp_path_factory.mktemp("stores") / f"store-{number}"
        teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e")
        extract(replace(small_scenes(train=train, val=4 + number, test=2, seed=number), teachers=teachers), path)
        made.append(Store.open(path))
    return made[0], made[1]


def data(store: Store, settings: Train = SETTINGS, student: Any = None, **ranks: int) -> TrainingData:
    return TrainingData(store, settings, TEACHERS, as_student(student or Augmenting()).inputs, CPU, **ranks)


def loaded(made: TrainingData, epoch: int = 0, first_step: int = 0) -> list[Batch]:
    made.stream.epoch, made.stream.first_step = epoch, first_step
    return list(made.loader)


def assert_same(some: Sequence[Batch], others: Sequence[Batch]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one.inputs.keys() == other.inputs.keys() == {"image", "text"}
        torch.testing.assert_close(tensors_of(one), tensors_of(other), rtol=0, atol=0)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_table_on_the_device_and_the_gather_on_the_host_join_the_same(
    two_stores: tuple[Store, Store], mixed: bool
) -> None:
    settings = replace(SETTINGS, mix_in={str(two_stores[1].root): 0.25} if mixed else {})
    resident, gathered = data(two_stores[0], settings), data(two_stores[0], replace(settings, device_table_gib=0.0))
    assert resident.on_device
    assert not gathered.on_device
    batches = loaded(resident)
    assert len(batches) == len(resident.stream) > 0
    for here, there in zip(batches, loaded(gathered), strict=True):
        torch.testing.assert_close(here.inputs["image"], there.inputs["image"], rtol=0, atol=0)
        assert here.teachers == {}
        joined = resident.teachers(here)
        assert {modality: rows.dtype for modality, rows in joined.items()} == dict.fromkeys(TEACHERS, torch.float16)
        torch.testing.assert_close(joined, gathered.teachers(there), rtol=0, atol=0)


def test_a_mixed_batch_holds_what_each_store_has(two_stores: tuple[Store, Store]) -> None:
    main, other = two_stores
    made = data(main, replace(SETTINGS, mix_in={str(other.root): 0.25}))
    student, seen = Augmenting(), []
    end = [int(main.rows("train", modality)[-1]) + 1 for modality in ("sample", "caption")]
    for batch in loaded(made):
        image, text = made.teachers(batch).values()
        samples, captions = batch.numbers.values()
        assert (samples >= end[0]).sum() == 3  # a quarter of every batch
        for place, numbers in enumerate(zip(samples.tolist(), captions.tolist(), strict=True)):
            store = other if numbers[0] >= end[0] else main
            firsts = [int(other.rows("train", modality)[0]) for modality in ("sample", "caption")]
            rows = numbers if store is main else [n - e + f for n, e, f in zip(numbers, end, firsts, strict=True)]
            assert store.captions["sample"][rows[1]].as_py() == rows[0]
            expected = student.eval_transform(decode_rgb(store.images[rows[0]]))
            torch.testing.assert_close(batch.inputs["image"][place], expected, rtol=0, atol=0)
            assert (
                batch.inputs["text"]
                .values[place]
                .equal(student.tokenizer([store.captions["text"][rows[1]].as_py()])[0])
            )
            for slug, row, found in zip(SLUGS, rows, (image[place], text[place]), strict=True):
                np.testing.assert_array_equal(found.numpy(), store.features(slug).gather(np.array([row]))[0])
        seen.extend(captions.tolist())
    assert len({caption for caption in seen if caption < end[1]}) == sum(caption < end[1] for caption in seen) > 0


def test_failed_features_leave_their_pairs_out(two_stores: tuple[Store, Store]) -> None:
    main = two_stores[0]
    made = data(main)
    failed = np.flatnonzero(~main.features(SLUGS[1]).valid)
    in_train = set(failed.tolist()) & set(main.rows("train", "caption").tolist())
    assert made.stream.left_out == len(in_train) > 0
    assert not {int(caption) for batch in loaded(made) for caption in batch.numbers["caption"]} & in_train


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than there are processors
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(two_stores: tuple[Store, Store], workers: int) -> None:
    settings = replace(SETTINGS, augment=True, device_table_gib=0.0, mix_in={str(two_stores[1].root): 0.3})
    alone, beside = data(two_stores[0], settings), data(two_stores[0], replace(settings, workers=workers))
    for epoch in range(2):
        whole = loaded(alone, epoch)
        assert_same(whole, loaded(beside, epoch))
        assert_same(whole[-3:], loaded(beside, epoch, len(whole) - 3))


def test_the_number_of_processes_changes_nothing(two_stores: tuple[Store, Store]) -> None:
    settings = replace(SETTINGS, augment=True)
    whole = loaded(data(two_stores[0], settings))
    for processes in (2, 3):
        ranks = [loaded(data(two_stores[0], settings, rank=r, processes=processes)) for r in range(processes)]
        together = [
            with_tensors(step[0], [torch.cat(parts) for parts in zip(*map(tensors_of, step), strict=True)])
            for step in zip(*ranks, strict=True)
        ]
        assert_same(whole, together)


def test_augmentation_is_new_each_epoch_and_leaves_the_generators_alone(two_stores: tuple[Store, Store]) -> None:
    made = data(two_stores[0], replace(SETTINGS, augment=True))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    pictures = [
        {
            int(caption): batch.inputs["image"][n]
            for batch in loaded(made, epoch)
            for n, caption in enumerate(batch.numbers["caption"])
        }
        for epoch in range(2)
    ]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.get_rng_state().equal(before[2])
    common = pictures[0].keys() & pictures[1].keys()
    assert len(common) > 100
    assert not any(pictures[0][caption].equal(pictures[1][caption]) for caption in common)
    other_seed = loaded(data(two_stores[0], replace(SETTINGS, augment=True, seed=1)))
    assert not other_seed[0].inputs["image"].equal(loaded(made, 0)[0].inputs["image"])


def test_a_pickled_data_set_carries_paths_alone(two_stores: tuple[Store, Store]) -> None:
    """As a spawned worker gets it; with the real student's transforms and tokenizer."""
    student = load_student(Student())
    made = data(two_stores[0], replace(SETTINGS, device_table_gib=0.0), student)
    draw = next(iter(made.stream))
    expected = made.loader.make(draw)
    pickled = pickle.dumps(data(two_stores[0], replace(SETTINGS, device_table_gib=0.0), student).loader.make)
    assert_same([pickle.loads(pickled)(draw)], [expected])


def test_what_an_epoch_is_stands_in_a_sentence(two_stores: tuple[Store, Store]) -> None:
    main, other = two_stores
    made = data(main, replace(SETTINGS, mix_in={str(other.root): 0.25}), processes=2)
    stream = made.stream
    assert stream.pairs - stream.dropped == len(stream) * 9
    words = made.announce()
    assert f"{stream.pairs} pairs an epoch in {len(stream)} steps of 12 (6 in each of 2 processes), " in words
    assert f"{stream.dropped} over an even number dropped, {stream.left_out} left out for want of features; " in words
    assert f"0.25 of every batch from {other.root}, {len(stream) * 3} of its " in words
    assert words.endswith("teacher features on the device")
    assert "processes" not in data(main).announce()


def test_pairs_of_one_picture_are_one_group_over_all_stores(two_stores: tuple[Store, Store], tmp_path: Path) -> None:
    """The third store draws the main one's first pictures again, and its own; the fourth one has a picture twice."""
    main, _ = two_stores
    teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e")
    extract(replace(small_scenes(train=8, val=4, test=2), teachers=teachers), tmp_path / "same")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, row in (("a", 0), ("b", 50), ("c", 0), ("d", 50)):
        (pictures / f"{name}.png").write_bytes(main.images[row])
        (pictures / f"{name}.txt").write_text("one\ntwo\n")
    twice = ExtractParameters(data=Data(source=str(pictures)), teachers=teachers, extract=Extract(workers=0))
    extract(twice, tmp_path / "twice")
    assert Store.open(tmp_path / "twice").manifest.shared == {"train": {"train": 2}}

    alone = data(Store.open(tmp_path / "twice"), replace(SETTINGS, batch_size=6))
    for batch in loaded(alone):
        assert batch.groups.tolist() == (batch.numbers["sample"] % 2).tolist()
    mixed = data(main, replace(SETTINGS, mix_in={str(tmp_path / name): 0.25 for name in ("same", "twice")}))
    stores = [main, Store.open(tmp_path / "same"), Store.open(tmp_path / "twice")]
    numbers = {"same": range(48, 56), "twice": range(56, 60)}
    seen = set()
    for batch in (batch for epoch in range(4) for batch in loaded(mixed, epoch)):
        for number, group in zip(batch.numbers["sample"].tolist(), batch.groups.tolist(), strict=True):
            assert group == {**{48 + n: n for n in range(8)}, 56: 0, 57: 57, 58: 0, 59: 57}.get(number, number)
            seen.add(number)
    assert seen >= set(numbers["same"]) | set(numbers["twice"])
    assert stores[1].images[0] == main.images[0]


def test_stores_that_do_not_go_together_are_refused(two_stores: tuple[Store, Store], tmp_path: Path) -> None:
    main, other = two_stores
    for paths in ([main.root], [other.root, other.root / ".." / other.root.name]):
        with refused(TrainingError, where="train.mix_in", path=str(paths[-1])):
            data(main, replace(SETTINGS, mix_in={str(path): 0.1 for path in paths}))
    with pytest.raises(StoreError, match=r"not a finished store"):
        data(main, replace(SETTINGS, mix_in={str(tmp_path): 0.1}))
    with pytest.raises(TrainingError, match="sum below 1"):
        data(main, replace(SETTINGS, mix_in={str(other.root): 0.99999}))
    with refused(TrainingError, path=main.root, where="teachers.image", found="text"):
        TrainingData(main, SETTINGS, dict.fromkeys(TEACHERS, SLUGS[1]), as_student(Augmenting()).inputs, CPU)
    teachers = Teachers(image="tiny_teachers:mean_colour", image_weights="others", text="tiny_teachers:no_e")
    extract(replace(small_scenes(train=20, val=2, test=2), teachers=teachers), tmp_path / "third")
    third = Store.open(tmp_path / "third")
    with pytest.raises(TrainingError, match="fingerprint") as caught:
        data(main, replace(SETTINGS, mix_in={str(third.root): 0.1}))
    for store in (main, third):
        assert str(store.root) in caught.value.message
        assert store.features(SLUGS[0]).fingerprint[:12] in caught.value.message


def test_an_uneven_share_is_refused_before_anything_starts(two_stores: tuple[Store, Store]) -> None:
    with pytest.raises(TrainingError, match="12, which 5 processes cannot share out evenly"):
        data(two_stores[0], rank=4, processes=5)


def test_features_of_one_name_must_be_of_one_kind_in_all_stores(tmp_path: Path) -> None:
    """By row, vectors of captions would else stand for those of samples."""
    shapes: dict[str, tuple[Level, tuple[int, ...]]] = {
        "main": ("sample", (8, 3)),
        "captions": ("caption", (40, 3)),
        "wider": ("sample", (8, 4)),
    }
    stores, small = {}, small_scenes(train=8, val=2, test=2)
    teachers = Teachers(image="tiny_teachers:mean_colour", text="tiny_teachers:no_e")
    for name, (level, shape) in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
        features = {"x": FeatureFile(file={"train": str(tmp_path / f"{name}.npy")}, level=level)}
        given = replace(small, data=replace(small.data, features=features), teachers=teachers)
        extract(given, tmp_path / name)
        stores[name] = Store.open(tmp_path / name)
    for name, found in (("captions", "3 for each caption"), ("wider", "4 for each sample")):
        expected = f"3 for each sample, as {stores['main'].root} has"
        with refused(TrainingError, path=stores[name].root, found=found, expected=expected):
            Mixture([stores["main"], stores[name]], "train", {"x": Stored("x")})
