"""The fast path from a file to pixels: near the careful one where it is taken, and nowhere else taken."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hostile_images import encoded, noise
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import v2

from models.fast_pixels import FastPixels
from models.preprocessing import Preprocessing
from stores.images import DecodingError, decode_rgb, is_plain_jpeg

CLIP = image_transform_v2(PreprocessCfg(size=48), is_train=False)


def scene(width: int = 160, height: int = 120) -> Image.Image:
    """Draw something with edges, slopes and noise."""
    y, x = np.mgrid[:height, :width]
    levels = np.stack([x * 255 // width, y * 255 // height, 255 * ((x // 9 + y // 7) % 2)], axis=-1)
    return Image.blend(Image.fromarray(levels.astype(np.uint8)), noise(width, height), 0.2)


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(scene(), "JPEG"), id="wide"),
        pytest.param(encoded(scene(90, 200), "JPEG", quality=95, subsampling=0), id="tall"),
        pytest.param(encoded(scene(30, 20), "JPEG"), id="enlarged"),
        pytest.param(encoded(scene(), "JPEG", progressive=True), id="progressive"),
        pytest.param(encoded(scene().convert("L"), "JPEG"), id="grey"),
        pytest.param(encoded(scene(), "JPEG", keep_rgb=True), id="rgb-inside"),
        pytest.param(encoded(scene(), "JPEG", exif=turned(1)), id="upright-by-exif"),
    ],
)
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(CLIP, id="open-clip"),
        pytest.param(create_transform((3, 48, 48), interpolation="bilinear", is_training=False), id="timm"),
    ],
)
def test_plain_jpegs_come_out_near_the_careful_path(data: bytes, transform: Any) -> None:
    fast = FastPixels.like(transform)
    assert fast is not None
    assert is_plain_jpeg(data)
    found, careful = Preprocessing(transform)(data), transform(decode_rgb(data))
    torch.testing.assert_close(found, fast(data), rtol=0, atol=0)
    assert found.is_contiguous()
    assert (found - careful).abs().mean() < 0.005, "a third of a level"
    assert torch.cosine_similarity(found.flatten(), careful.flatten(), dim=0) > 0.9999


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(scene(), "JPEG", exif=turned(6)), id="turned"),
        pytest.param(encoded(scene().convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encoded(scene(), "MPO", save_all=True, append_images=[scene()]), id="mpo"),
        pytest.param(encoded(scene(), "PNG"), id="png"),
        pytest.param(encoded(scene(), "WEBP"), id="webp"),
    ],
)
def test_other_files_take_the_careful_path(data: bytes) -> None:
    assert not is_plain_jpeg(data)
    torch.testing.assert_close(Preprocessing(CLIP)(data), CLIP(decode_rgb(data)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([v2.Resize((48, 48)), v2.CenterCrop(48)], id="both-sides"),
        pytest.param([v2.Resize(48, max_size=60), v2.CenterCrop(48)], id="long-side-bound"),
        pytest.param([v2.Resize(48, interpolation=v2.InterpolationMode.NEAREST), v2.CenterCrop(48)], id="nearest"),
        pytest.param([v2.Resize(48), v2.CenterCrop(48), v2.Grayscale(3)], id="further-step"),
        pytest.param([v2.RandomResizedCrop(48)], id="augmented"),
    ],
)
def test_other_transforms_take_the_careful_path(steps: list[Callable[..., Any]]) -> None:
    tail = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    assert FastPixels.like(v2.Compose([*steps, *tail])) is None
    assert FastPixels.like(transforms.Compose([transforms.Resize(48), transforms.CenterCrop(48), tail[0]])) is None


def test_a_setting_that_is_not_known_shows_on_a_probe() -> None:
    """Values that are not from 0 to 1 are normalised otherwise."""
    normalize = v2.Normalize((0.5,) * 3, (0.5,) * 3)
    steps = [v2.Resize(48), v2.CenterCrop(48), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=False), normalize]
    assert FastPixels.like(v2.Compose(steps)) is None


def test_damaged_jpegs_fail_as_on_the_careful_path() -> None:
    """Bytes changed, files cut: both decoders give up on the same ones, and nothing worse becomes of them."""
    drawn = random.Random(0)
    whole = [encoded(scene(64, 48), "JPEG"), encoded(scene(64, 48), "JPEG", progressive=True)]
    prepared = Preprocessing(CLIP)
    failed = 0
    for number in range(120):
        data = bytearray(whole[number % 2])
        if number % 3:
            data[drawn.randrange(2, len(data))] = drawn.randrange(256)
        else:
            data = data[: drawn.randrange(20, len(data))] + b"\xff\xd9" * (number % 2)
        try:
            decode_rgb(bytes(data))
        except DecodingError:
            failed += 1
            with pytest.raises(DecodingError):
                prepared(bytes(data))
        else:
            assert prepared(bytes(data)).shape == (3, 48, 48)
    assert 20 < failed < 100


def test_a_file_is_opened_for_its_header_alone() -> None:
    assert not is_plain_jpeg(b"")
    assert not is_plain_jpeg(encoded(scene(), "JPEG")[:100])
    cut = encoded(scene(), "JPEG")[:-500]
    assert is_plain_jpeg(cut)
    with pytest.raises(DecodingError, match="truncated"):
        Preprocessing(CLIP)(cut)
    assert Image.open(io.BytesIO(cut)).size == (160, 120)
