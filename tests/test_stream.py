"""The stream: exactly once an epoch, a function of seed, epoch and step, the same however many processes share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from refusals import refused
from written_stores import write_store

from pipeline.tabulate import ensure_pairing
from stores import ParameterError, Store, StoreError, TrainingError
from stores.digests import file_digest
from stores.errors import DamagedStoreError
from stores.layout import Layout
from stores.parameters import Noise
from train.data.captions import Captions
from train.data.pairing import Pairing
from train.data.passes import Passes, Unusable
from train.data.shares import PERIOD, MixtureShares
from train.data.stream import PairStream

Pair = tuple[int, int]
FAR = 10_000
"""Offset of a second store's rows in these tests."""


def noisy(store: Store, share: float, level: Literal["image", "caption"] = "image") -> Store:
    """The store with a share of its images' captions permuted, or of its captions."""
    layout = Layout(store.root)
    ensure_pairing(Noise(ratio=share, seed=3, level=level), store.manifest.shards, layout, store.manifest)
    files = {path.name: file_digest(path) for path in store.root.glob("pairing.arrow")}
    return Store(store.root, replace(store.manifest, files=files))


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def passes(store: Store, number: int = 0, **changes: Any) -> Passes:
    settings = {"captions": "all", "shuffle_shards": 2, "seed": (0, number), "offsets": (number * FAR, number * FAR)}
    settings = {**settings, **changes}
    unusable = settings.pop("unusable", Unusable(rows(), rows()))
    pairing = settings.pop("pairing", Pairing(store, "train"))
    return Passes(store, "train", unusable, pairing, **settings)


def test_noise_swaps_the_captions_of_a_share_of_the_images(tmp_path: Path) -> None:
    """By image: all captions of an image go together, to another one of the share; each still comes once."""
    store = write_store(tmp_path, [[2, 3, 1], [4, 2], [3, 2, 2, 1]])
    own = [(sample, caption) for caption, sample in enumerate(store.captions["sample"].to_pylist())]
    assert sorted(epoch(stream(store, 20), 0)) == own
    for share, expected in ((0.0, 0), (0.5, 4), (1.0, 9)):
        store = noisy(store, share)
        pairing = Pairing(store, "train")
        wrong = pairing.wrong()
        pairs = epoch(stream(store, 20, pairing=pairing), 0)
        assert sorted(caption for _, caption in pairs) == list(range(20))
        goes = {own[caption][0]: {sample for sample, c in pairs if own[c][0] == own[caption][0]} for _, caption in own}
        assert all(len(samples) == 1 for samples in goes.values()), "captions of an image stay together"
        to = {sample: samples.pop() for sample, samples in goes.items()}
        assert sorted(to) == sorted(to.values()), "a permutation"
        moved = [sample for sample, other in to.items() if other != sample]
        assert expected / 2 <= len(moved) <= expected
        again = epoch(stream(noisy(store, share), 20, pairing=Pairing(store, "train")), 0)
        assert again == pairs
        told = set() if wrong is None else set(np.flatnonzero(wrong).tolist())
        assert told == {caption for sample, caption in pairs if sample != own[caption][0]}
        one = epoch(stream(store, 9, captions="one", pairing=pairing), 0)
        assert sorted(sample for sample, _ in one) == list(range(9)), "every image once, whoever its captions are"
    failed = Unusable(rows(4), rows(0, 7))
    left = stream(store, 4, unusable=failed)
    kept = [pair for number in range(3) for pair in epoch(left, number)]
    assert len(kept) >= 3 * 4
    assert all(sample != 4 and caption not in (0, 7) for sample, caption in kept)
    assert left.left_out == 2 + sum(to[own[caption][0]] == 4 for caption in range(20) if caption not in (0, 7))


def stream(store: Store, batch_size: int = 8, rank: int = 0, processes: int = 1, **changes: Any) -> PairStream:
    return PairStream(
        [passes(store, **changes)], MixtureShares(()), batch_size=batch_size, rank=rank, processes=processes
    )


def batches(pairs: PairStream, epoch: int, first_step: int = 0) -> list[list[Pair]]:
    pairs.epoch, pairs.first_step = epoch, first_step
    return [list(zip(draw.samples.tolist(), draw.captions.tolist(), strict=True)) for draw in pairs]


def epoch(pairs: PairStream, number: int) -> list[Pair]:
    return [pair for batch in batches(pairs, number) for pair in batch]


def test_every_pair_once_an_epoch(scenes_store: Store) -> None:
    seen = epoch(stream(scenes_store), 0)
    captions = scenes_store.rows("train", "caption")
    assert sorted(caption for _, caption in seen) == captions.tolist()
    owner = scenes_store.captions["sample"].to_numpy()
    assert all(owner[caption] == sample for sample, caption in seen)


def test_one_caption_an_image(scenes_store: Store) -> None:
    pairs = stream(scenes_store, captions="one")
    first, second = epoch(pairs, 0), epoch(pairs, 1)
    assert sorted(sample for sample, _ in first) == scenes_store.rows("train", "sample").tolist()
    assert {caption for _, caption in first} != {caption for _, caption in second}


def test_one_caption_an_image_is_refused_where_captions_move_by_themselves(tmp_path: Path) -> None:
    """Counted a shard and drawn a window, a sample would come twice, and a resumed epoch be another one."""
    store = write_store(tmp_path, [[5] * 8] * 4)
    by_image = noisy(store, 0.5)
    pairs = stream(by_image, captions="one")
    whole = batches(pairs, 0)
    assert sorted(sample for batch in whole for sample, _ in batch) == list(range(32))
    assert batches(pairs, 0, first_step=2) == whole[2:]
    by_caption = noisy(by_image, 0.5, level="caption")
    with refused(ParameterError, where="train.captions", found="one"):
        stream(by_caption, captions="one")
    assert len(epoch(stream(by_caption), 0)) == 160


def test_the_order_is_a_function_of_seed_and_epoch(scenes_store: Store) -> None:
    assert epoch(stream(scenes_store), 3) == epoch(stream(scenes_store), 3)
    assert epoch(stream(scenes_store), 3) != epoch(stream(scenes_store), 4)
    assert epoch(stream(scenes_store), 3) != epoch(stream(scenes_store, seed=(1, 0)), 3)


def test_shards_are_permuted_and_windows_bound_what_is_open(scenes_store: Store) -> None:
    pairs = stream(scenes_store, shuffle_shards=1)
    orders = set()
    for number in range(8):
        shards = [sample // 16 for sample, _ in epoch(pairs, number)]
        changes = [shard for position, shard in enumerate(shards) if position == 0 or shards[position - 1] != shard]
        assert len(changes) == len(scenes_store.shards("train"))
        orders.add(tuple(changes))
    assert len(orders) > 1


def test_what_is_over_is_less_than_a_batch_and_counted(scenes_store: Store) -> None:
    pairs = stream(scenes_store, batch_size=100)
    assert (len(pairs), pairs.pairs, pairs.dropped) == (2, 240, 40)
    assert len(epoch(pairs, 0)) == 200


def test_rows_without_features_are_left_out_and_counted(scenes_store: Store) -> None:
    pairs = stream(scenes_store, batch_size=2, unusable=Unusable(rows(3), rows(0)))
    seen = epoch(pairs, 0)
    assert pairs.left_out == 6
    assert len(seen) == 234
    assert not {sample for sample, _ in seen} & {3}
    assert not {caption for _, caption in seen} & {0}


def test_what_cannot_be_trained_on_is_refused(scenes_store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="240 pairs an epoch, fewer than one batch of 500"):
        stream(scenes_store, batch_size=500)
    with pytest.raises(TrainingError, match=r"8, which 3 processes cannot share out evenly.* Choose 6 or 9"):
        stream(scenes_store, batch_size=8, processes=3)
    with pytest.raises(TrainingError, match=r"2, which 3 processes cannot share out evenly.* Choose 3,"):
        stream(scenes_store, batch_size=2, processes=3)
    all_of_them = np.arange(len(scenes_store.samples))
    with pytest.raises(TrainingError, match="of its 240 pairs, none has the features of both teachers"):
        stream(scenes_store, unusable=Unusable(all_of_them, rows()))
    with pytest.raises(
        TrainingError, match=r"train\.clean_at_least leaves 240 out, .*or lower train\.clean_at_least\."
    ):
        stream(scenes_store, unusable=Unusable(rows(), np.arange(240), doubtful=240))
    with pytest.raises(
        TrainingError, match=r"10 pairs an epoch and leaves 230 out by train\.clean_at_least, fewer than"
    ):
        stream(scenes_store, batch_size=20, unusable=Unusable(rows(), np.arange(230), doubtful=230))
    with pytest.raises(TrainingError, match="has no pairs"):
        stream(write_store(tmp_path, [[], []]))
    with pytest.raises(StoreError, match="no split 'dev'; it has train, val, test"):
        Passes(
            scenes_store,
            "dev",
            Unusable(rows(), rows()),
            Pairing(scenes_store, "train"),
            captions="all",
            shuffle_shards=2,
            seed=(0, 0),
        )


def test_damaged_captions_are_seen(scenes_store: Store, tmp_path: Path) -> None:
    other = write_store(tmp_path, [[1, 2], [3]])
    damaged = other.root / "captions.arrow"
    with refused(DamagedStoreError, path=damaged, problem="batches of rows", found=2, expected=6):
        passes(Store(other.root, scenes_store.manifest), captions="one")
    longer = write_store(tmp_path / "longer", [[1, 2], [4]]).manifest
    with refused(DamagedStoreError, path=damaged, where="shard train-000001", found=3, expected=4):
        passes(Store(other.root, longer), captions="one")
    fewer_samples = write_store(tmp_path / "fewer", [[3], [3]]).manifest
    with refused(DamagedStoreError, path=damaged, where="shard train-000000"):
        passes(Store(other.root, fewer_samples), captions="one")


class Case:
    """Random stores, shares and settings."""

    def __init__(self, folder: Path, number: int) -> None:
        random = np.random.default_rng(number)
        self.random, self.captions = random, ("all", "one")[number % 2]
        self.processes = 1 + number % 5
        self.batch_size = self.processes * int(random.integers(1, 6))
        self.shares = [(), (0.3,), (0.1234, 0.4)][number % 3]
        self.passes = []
        for store in range(1 + len(self.shares)):
            sizes = [random.integers(0, 4, random.integers(0, 12)).tolist() for _ in range(random.integers(2, 7))]
            sizes[0] = [1] * 30  # enough for a batch
            written = write_store(folder / f"{number}-{store}", sizes)
            unusable = Unusable(rows(*random.choice(30, 3, replace=False)), rows(*random.choice(30, 2, replace=False)))
            unusable = Unusable(np.sort(unusable.samples), np.sort(unusable.captions))
            settings = {"captions": self.captions, "shuffle_shards": int(random.integers(1, 5)), "unusable": unusable}
            self.passes.append(passes(written, store, **settings))

    def stream(self, rank: int = 0, processes: int = 1) -> PairStream:
        return PairStream(
            self.passes, MixtureShares(self.shares), batch_size=self.batch_size, rank=rank, processes=processes
        )


@pytest.mark.parametrize("number", range(30))
def test_any_stores_any_processes(tmp_path: Path, number: int) -> None:
    """Exactly once, the same whole batches for any number of processes, and the rest of an epoch from any step."""
    case = Case(tmp_path, number)
    alone = case.stream()
    ranks = [case.stream(rank, case.processes) for rank in range(case.processes)]
    others: list[list[Pair]] = [[] for _ in case.shares]
    for of_epoch in range(3):
        whole = batches(alone, of_epoch)
        assert len(whole) == len(alone) > 0
        parts = [batches(rank, of_epoch) for rank in ranks]
        assert {len(part) for part in parts} == {len(alone)}
        assert [[pair for part in step for pair in part] for step in zip(*parts, strict=True)] == whole
        seen = [pair for batch in whole for pair in batch]
        main = [pair for pair in seen if pair[0] < FAR]
        assert len(set(main)) == len(main) == alone.pairs - alone.dropped
        assert alone.dropped < case.batch_size
        for store, of_other in enumerate(others, 1):
            of_other.extend(pair for pair in seen if store * FAR <= pair[0] < (store + 1) * FAR)
        assert_dealt_by_share([pair[0] // FAR for pair in seen], case.shares)
        step = int(case.random.integers(len(alone) + 1))
        assert batches(alone, of_epoch, step) == whole[step:]
    for of_other, split in zip(others, case.passes[1:], strict=True):
        for start in range(0, len(of_other), split.pairs):
            once = of_other[start : start + split.pairs]
            assert len(set(once)) == len(once)
            assert case.captions == "all" or len({sample for sample, _ in once}) == len(once)


def assert_dealt_by_share(stores: Sequence[int], others: Sequence[float]) -> None:
    for store, share in enumerate([1 - sum(others), *others]):
        taken = np.cumsum(np.array(stores) == store)
        assert np.abs(taken - share * np.arange(1, len(stores) + 1)).max() < 1 + 1e-6


def test_places_are_dealt_within_one_at_any_prefix() -> None:
    random = np.random.default_rng(0)
    for stores in (1, 2, 3, 5, 8):
        parts = random.dirichlet(np.ones(stores)) * 0.9 + 0.1 / stores
        shares = MixtureShares(parts[1:].tolist())
        dealt = shares.owners(0, 2 * PERIOD + 7)
        assert_dealt_by_share(dealt.tolist(), [round(part, 4) for part in parts[1:]])
        for places in (0, 1, 17, PERIOD, 2 * PERIOD + 7):
            assert shares.count(places).tolist() == np.bincount(dealt[:places], minlength=stores).tolist()
        assert shares.owners(PERIOD - 3, 9).tolist() == dealt[PERIOD - 3 : PERIOD + 6].tolist()


def test_shares_that_leave_nothing_are_refused() -> None:
    for others in ((0.5, 0.5), (0.7, 0.4), (0.00001,)):
        with pytest.raises(TrainingError, match="their sum below 1: the main store gets what they leave"):
            MixtureShares(others)


def test_a_store_too_small_for_its_share_of_a_batch_is_refused(scenes_store: Store, tmp_path: Path) -> None:
    small = write_store(tmp_path, [[1, 2]])
    with pytest.raises(TrainingError, match="gives 3 pairs an epoch, fewer than its share of 8 in one batch of 16"):
        PairStream([passes(scenes_store), passes(small, 1)], MixtureShares((0.5,)), batch_size=16)


def test_another_process_sees_a_sample_in_another_epoch(scenes_store: Store) -> None:
    ranks = [stream(scenes_store, rank=rank, processes=2) for rank in range(2)]
    shares = [{caption for _, caption in epoch(ranks[0], number)} for number in range(4)]
    everything = set(scenes_store.rows("train", "caption").tolist())
    for number in range(4):
        assert shares[number] | {caption for _, caption in epoch(ranks[1], number)} == everything
    for one in range(4):
        for other in range(one):
            assert 0.25 < len(shares[one] & shares[other]) / len(shares[one]) < 0.75  # half, were it by chance alone


def test_skipped_steps_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    owners = Captions.owners

    def counted(self: Captions, number: int) -> NDArray[np.int64]:
        read.append(number)
        return owners(self, number)

    pairs = stream(write_store(tmp_path, [[2] * 8] * 100))
    monkeypatch.setattr(Captions, "owners", counted)
    assert len(batches(pairs, 0, first_step=len(pairs) - 1)) == 1
    assert len(read) == 2  # the last window
    assert len(batches(pairs, 0, first_step=len(pairs))) == 0
    assert pairs.dropped == 0
