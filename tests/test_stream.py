"""The stream: exactly once an epoch, a function of seed and epoch; and the join of teachers' features by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stores import Store, TrainingError
from train.data import Batch, Join, PairBatches
from train.stream import Pair, PairStream
from train.student import load_student


def stream(store: Store, **changes: object) -> PairStream:
    settings = {
        "batch_size": 8,
        "captions": "all",
        "shuffle_shards": 2,
        "seed": 0,
        "usable_samples": np.ones(len(store.samples), bool),
        "usable_captions": np.ones(len(store.captions), bool),
    }
    return PairStream(store, "train", **{**settings, **changes})


def epoch(pairs: PairStream, number: int) -> list[Pair]:
    pairs.epoch = number
    return [pair for batch in pairs for pair in batch]


def test_every_pair_once_an_epoch(scenes_store: Store) -> None:
    seen = epoch(stream(scenes_store), 0)
    captions = scenes_store.rows("train", "text")
    assert sorted(caption for _, caption in seen) == captions.tolist()
    owner = scenes_store.captions["sample"].to_numpy()
    assert all(owner[caption] == sample for sample, caption in seen)


def test_one_caption_an_image(scenes_store: Store) -> None:
    pairs = stream(scenes_store, captions="one")
    first, second = epoch(pairs, 0), epoch(pairs, 1)
    assert sorted(sample for sample, _ in first) == scenes_store.rows("train", "image").tolist()
    assert {caption for _, caption in first} != {caption for _, caption in second}


def test_the_order_is_a_function_of_seed_and_epoch(scenes_store: Store) -> None:
    assert epoch(stream(scenes_store), 3) == epoch(stream(scenes_store), 3)
    assert epoch(stream(scenes_store), 3) != epoch(stream(scenes_store), 4)
    assert epoch(stream(scenes_store), 3) != epoch(stream(scenes_store, seed=1), 3)


def test_shards_are_permuted_and_windows_bound_what_is_open(scenes_store: Store) -> None:
    pairs = stream(scenes_store, shuffle_shards=1)
    sizes = [shard.captions for shard in scenes_store.shards("train")]
    orders = set()
    for number in range(8):
        shards = [sample // 16 for sample, _ in epoch(pairs, number)]
        changes = [shard for position, shard in enumerate(shards) if position == 0 or shards[position - 1] != shard]
        assert len(changes) == len(sizes)
        orders.add(tuple(changes))
    assert len(orders) > 1


def test_what_is_over_is_less_than_a_batch_and_counted(scenes_store: Store) -> None:
    pairs = stream(scenes_store, batch_size=100)
    assert (len(pairs), pairs.pairs, pairs.dropped) == (2, 240, 40)
    assert len(epoch(pairs, 0)) == 200


def test_rows_without_features_are_left_out_and_counted(scenes_store: Store) -> None:
    samples, captions = np.ones(len(scenes_store.samples), bool), np.ones(len(scenes_store.captions), bool)
    samples[3] = captions[0] = False
    pairs = stream(scenes_store, batch_size=2, usable_samples=samples, usable_captions=captions)
    seen = epoch(pairs, 0)
    assert pairs.left_out == 6
    assert not {sample for sample, _ in seen} & {3}
    assert not {caption for _, caption in seen} & {0}


def test_a_split_smaller_than_a_batch_is_refused(scenes_store: Store) -> None:
    with pytest.raises(TrainingError, match="240 pairs an epoch, fewer than one batch of 500"):
        stream(scenes_store, batch_size=500)


def loaded(store: Store, join: Join, workers: int) -> list[Batch]:
    pairs = stream(store)
    dataset = PairBatches(store, load_student("open-clip:small-clip"), join.on_host, cache_gib=0.1)
    return list(DataLoader(dataset, batch_sampler=pairs, num_workers=workers, collate_fn=lambda batch: batch))


def test_the_table_on_the_device_and_the_gather_on_the_host_join_the_same(scenes_store: Store) -> None:
    slugs, cpu = ("hog-color", "minilm"), torch.device("cpu")
    resident = Join(scenes_store, "train", slugs, cpu, budget_gib=1.0)
    gathered = Join(scenes_store, "train", slugs, cpu, budget_gib=0.0)
    assert resident.on_device
    assert not gathered.on_device
    for here, there in zip(loaded(scenes_store, resident, 0), loaded(scenes_store, gathered, 0), strict=True):
        torch.testing.assert_close(here.images, there.images, rtol=0, atol=0)
        for a, b in zip(resident(here), gathered(there), strict=True):
            assert a.dtype == torch.float16
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        expected = scenes_store.features("hog-color").gather(here.samples.numpy())
        np.testing.assert_array_equal(resident(here)[0].numpy(), expected)


def test_the_number_of_workers_changes_nothing(scenes_store: Store) -> None:
    join = Join(scenes_store, "train", ("hog-color", "minilm"), torch.device("cpu"), budget_gib=0.0)
    alone, beside = loaded(scenes_store, join, 0), loaded(scenes_store, join, 2)
    for one, other in zip(alone, beside, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
