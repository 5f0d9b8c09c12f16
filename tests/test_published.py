"""Data sets in their published layouts, made small: CUB with captions and attributes, Flickr8K with its speech."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from test_features_import import TINY
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from models.speech import SpeechEncoder
from pipeline.extract import extract
from pipeline.inspection.verify import verify
from pipeline.sources.facc import open_facc
from pipeline.sources.files import folder_at
from stores import ExtractParameters, SourceError, Store
from stores.errors import WeightsError
from stores.parameters import Data, Extract, FeatureFile

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
EACH = 4
SPOKEN = {"train": ["100_a.jpg", "101_b.jpg", "102_c.jpg"], "dev": ["103_d.jpg"], "test": ["104_e.jpg", "105_f.jpg"]}


class Loudness:
    """Of a recording: its length, its mean and its loudness."""

    dim = 3
    fingerprint = "loudness 1"

    def __call__(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        return np.array([len(samples) / rate, samples.mean(), np.abs(samples).max()], dtype=np.float32)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (17 * number % 256, 90, 200 - number)).save(path)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """12 images of three classes, of which the last is unseen; every second one trains."""
    root = tmp_path / "CUB_200_2011"
    names = [f"{name}/{name[4:]}_{number:04}.jpg" for name in CLASSES for number in range(EACH)]
    written(root / "images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    written(root / "image_class_labels.txt", "".join(f"{n + 1} {n // EACH + 1}\n" for n in range(len(names))))
    written(root / "classes.txt", "".join(f"{n} {name}\n" for n, name in enumerate(CLASSES, 1)))
    written(root / "train_test_split.txt", "".join(f"{n + 1} {int(n % 2 == 0)}\n" for n in range(len(names))))
    written(root / "cvpr2016_cub" / "testclasses.txt", f"{CLASSES[2]}\n")
    for number, name in enumerate(names):
        picture(root / "images" / name, number)
        said = "".join(f"bird {number} has feather {n}.\n" for n in range(10))
        written(root / "cvpr2016_cub" / "text_c10" / f"{name[:-4]}.txt", said)
    rows = [f"{n + 1} {a} {int((n + a) % 3 == 0)} 3 {n}.5" for n in range(len(names) - 1) for a in range(1, 313)]
    rows[7] += " 0"  # as some lines of the published file are
    written(root / "attributes" / "image_attribute_labels.txt", "\n".join(rows) + "\n")
    table = "".join(" ".join(f"{(n + 1) * a % 101:.6f}" for a in range(312)) + "\n" for n in range(3))
    written(root / "attributes" / "class_attribute_labels_continuous.txt", table)
    return root


def stored(source: Path, folder: Path, **data: object) -> Store:
    parameters = ExtractParameters(
        data=Data(source=str(source), **data), teachers=TINY, extract=Extract(shard_size=5, workers=0)
    )
    extract(parameters, folder / "store")
    assert extract(parameters, folder / "store").made == {}
    assert verify(folder / "store").whole
    return Store.open(folder / "store")


def test_cub_has_attributes_of_images_and_classes(cub: Path, tmp_path: Path) -> None:
    store = stored(cub, tmp_path)
    assert {split: len(store.rows(split, "sample")) for split in store.manifest.splits} == {"train": 4, "test": 8}
    samples = store.samples.to_pylist()
    unseen = {row["split"] for row in samples if row["label"] == CLASSES[2]}
    assert unseen == {"test"}
    assert all(row["caption_count"] == 10 for row in samples)
    attributes, classes = store.features("attributes"), store.features("class_embedding")
    assert (attributes.level, attributes.shape, classes.level, classes.unit) == ("sample", (312,), "class", True)
    order = np.array([CLASSES.index(row["label"]) * EACH + int(row["source_id"][-8:-4]) for row in samples])
    assert attributes.valid.tolist() == (order != 11).tolist(), "of the last nobody was asked"
    expected = ((order[:, None] + np.arange(1, 313)) % 3 == 0) & (order != 11)[:, None]
    np.testing.assert_array_equal(attributes.gather(np.arange(12)), expected)
    table = np.array([[(n + 1) * a % 101 for a in range(312)] for n in range(3)], dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(classes.gather(np.arange(3)), table, atol=1e-3)


def test_rows_of_cub_follow_the_lists_that_number_them(cub: Path, tmp_path: Path) -> None:
    """Numbers that two images, and two classes, exchange change no sample, and whose attributes are whose."""
    before = stored(cub, tmp_path)
    rows = {name: before.features(name).gather(np.arange(3)) for name in ("attributes", "class_embedding")}
    first = [int(name[-8:-4]) for name in before.samples["source_id"].to_pylist()].index(2)
    names = (cub / "images.txt").read_text().split("\n")
    names[0], names[2] = names[0].replace("1 ", "3 ", 1), names[2].replace("3 ", "1 ", 1)
    (cub / "images.txt").write_text("\n".join(names))
    (cub / "classes.txt").write_text("".join(f"{n} {CLASSES[row]}\n" for n, row in ((2, 1), (1, 0), (3, 2))))
    after = stored(cub, tmp_path)
    assert after.samples.equals(before.samples)
    found = {name: after.features(name).gather(np.arange(3)) for name in rows}
    np.testing.assert_array_equal(found["class_embedding"], rows["class_embedding"][[1, 0, 2]])
    swapped = sorted((0, first))
    np.testing.assert_array_equal(found["attributes"][swapped], rows["attributes"][swapped[::-1]])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images.txt", "1\n", "line 1: found '1', expected 2 fields"),
        ("train_test_split.txt", "1 1\n", "image 2 .* has no split or no class"),
        ("attributes/class_attribute_labels_continuous.txt", "1 2\n", "312 fields"),
    ],
    ids=["one-field", "no-split", "few-attributes"],
)
def test_a_list_of_cub_that_is_broken_is_named(cub: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (cub / file).write_text(text)
    with pytest.raises(SourceError, match=message):
        stored(cub, tmp_path)


@pytest.fixture
def facc(tmp_path: Path) -> Path:
    """Six images with five captions each, of which one is not spoken and one recording is broken."""
    root = tmp_path / "flickr8k"
    said, spoken = [], []
    for number, name in enumerate(name for names in SPOKEN.values() for name in names):
        picture(root / "Flicker8k_Dataset" / name, number)
        for n in range(5):
            said.append(f"{name}#{n}\tA dog {n} of {name} runs .")
            spoken.append(f"{name[:-4]}_{n}.wav {name} #{n}")
            wav = root / "flickr_audio" / "wavs" / f"{name[:-4]}_{n}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(wav), "wb") as recording:
                recording.setnchannels(1)
                recording.setsampwidth(2)
                recording.setframerate(16_000)
                tone = 1000 * (n + 1) * np.sin(np.arange(1600 * (number + 1)) / 5)
                recording.writeframes(tone.astype("<i2").tobytes())
    (root / "flickr_audio" / "wavs" / "100_a_2.wav").write_bytes(b"RIFF")
    written(root / "flickr_audio" / "wav2capt.txt", "\n".join(spoken[:-1]) + "\n")
    written(root / "Flickr8k_text" / "Flickr8k.token.txt", "\n".join(said) + "\n")
    for split, names in SPOKEN.items():
        written(root / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt", "\n".join(names) + "\n")
    return root


def test_spoken_captions_are_encoded(facc: Path, tmp_path: Path) -> None:
    store = stored(facc, tmp_path, speech="test_published:Loudness")
    counts = {split: len(store.rows(split, "sample")) for split in store.manifest.splits}
    assert counts == {"train": 3, "val": 1, "test": 2}
    speech = store.features("speech")
    assert (speech.level, speech.shape, len(speech)) == ("caption", (3,), 30)
    assert np.flatnonzero(~speech.valid).tolist() == [2, 29]
    rows = speech.gather(np.arange(30)).astype(np.float32)
    assert rows[12, 0] == pytest.approx(1600 * 3 / 16_000, rel=1e-3)
    assert rows[14, 2] == pytest.approx(5000 / 32768, rel=1e-2)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HuBERT of random weights, as transformers saves one."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    HubertModel(HubertConfig(**sizes, conv_dim=[8] * 7, num_conv_pos_embedding_groups=2)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_spoken_captions_are_encoded_by_a_folder_s_model(facc: Path, hubert: Path, tmp_path: Path) -> None:
    store = stored(facc, tmp_path, speech=f"speech:{hubert}")
    speech = store.features("speech")
    assert speech.shape == (16,)
    assert np.flatnonzero(~speech.valid).tolist() == [2, 29]
    tone = (1000 * 3 * np.sin(np.arange(1600 * 3) / 5)).astype("<i2") / np.float32(32768)
    model = HubertModel.from_pretrained(hubert).eval()
    with torch.inference_mode():
        given = torch.from_numpy((tone - tone.mean()) / np.sqrt(tone.var() + 1e-7)).float()[None]
        expected = model(given).last_hidden_state[0].mean(dim=0).numpy()
    np.testing.assert_allclose(speech.gather(np.array([12]))[0], expected, atol=2e-3)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(
    ("width", "channels", "rate", "cut", "there"),
    [
        (1, 1, 8000, 0, True),
        (3, 2, 44_100, 0, True),
        (4, 1, 16_000, 0, True),
        (2, 1, 16_000, 1, False),
        (2, 1, 16_000, None, False),
        (2, 1, 100, 0, False),
    ],
    ids=["8-bit", "stereo-24-bit", "32-bit", "cut", "empty", "too-slow"],
)
def test_odd_recordings_are_read_or_absent(
    facc: Path, hubert: Path, width: int, channels: int, rate: int, cut: int | None, there: bool
) -> None:
    """One second of 100 Hz at half of the range is the same to the ear, whatever its form."""
    tone = 0.5 * np.sin(2 * np.pi * 100 * np.arange(rate) / rate)
    levels = np.repeat(np.round(tone * 2 ** (8 * width - 1)).astype("<i4"), channels)
    data = (levels + (128 if width == 1 else 0)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    path = facc / "flickr_audio" / "wavs" / "100_a_0.wav"
    with wave.open(str(path), "wb") as recording:
        recording.setparams((channels, width, rate, 0, "NONE", ""))
        recording.writeframes(data if cut is not None else b"")
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    source = open_facc(folder_at(str(facc), "data.source"), f"speech:{hubert}")
    row = source.features["speech"].of("100_a.jpg")[0]
    assert np.isfinite(row).all() == there
    if there:
        usual = 0.5 * np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000)
        assert row @ SpeechEncoder(str(hubert))(usual.astype(np.float32), 16_000) > 0.99 * (row @ row)


def test_a_folder_without_a_speech_model_is_said(facc: Path, hubert: Path, tmp_path: Path) -> None:
    other = tmp_path / "hubert"
    shutil.copytree(hubert, other)
    save_file({"unlike": torch.zeros(1)}, other / "model.safetensors", {"format": "pt"})
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for place, message in ((other, "lack"), (tmp_path / "bert", "another kind"), (tmp_path / "none", "no such folder")):
        with pytest.raises(WeightsError, match=message):
            open_facc(folder_at(str(facc), "data.source"), f"speech:{place}")


def test_vectors_of_spoken_captions_are_imported_by_key(facc: Path, tmp_path: Path) -> None:
    """By the ids that the captions have in Flickr8K's own file."""
    names = [f"{name}#{n}" for names in SPOKEN.values() for name in names for n in range(5)]
    order = np.random.default_rng(0).permutation(30)[:20]
    values = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float16)
    np.savez(tmp_path / "hubert.npz", mean=values[order], caption=np.array(names)[order])
    file = FeatureFile(file=str(tmp_path / "hubert.npz"), array="mean", key="caption", level="caption")
    store = stored(facc, tmp_path, features={"speech": file})
    found = store.features("speech")
    assert sorted(np.flatnonzero(found.valid)) == sorted(order)
    np.testing.assert_array_equal(found.gather(order), values[order])


def test_an_encoder_must_say_what_it_computes(facc: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="lacks dim and fingerprint"):
        stored(facc, tmp_path, speech="collections:OrderedDict")
