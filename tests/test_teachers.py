"""Teachers: Unicom's checkpoint layout, sentence-transformers against published figures, hog-color, a user's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from pipeline.extract import extract
from pipeline.teachers import load_teacher
from pipeline.teachers.base import Teacher
from pipeline.teachers.sentences import MINILM_PACKAGE
from pipeline.teachers.unicom import MODELS, UnicomViT
from stores import ExtractParameters, TeacherError
from stores.parameters import Data, Extract, Scenes, Teachers


def unicom_checkpoint(name: str) -> dict[str, torch.Tensor]:
    """Random weights in Unicom's published key layout, written out from METHODS and not from our module."""
    shape = MODELS[name]
    width, patch, side = shape.width, shape.patch_size, shape.image_size
    patches = (side // patch) ** 2
    sizes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, patches, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "feature.0.weight": (width, width * patches),
        "feature.2.weight": (shape.dim, width),
    }
    for layer, size in (("feature.1", width), ("feature.3", shape.dim)):
        sizes |= {f"{layer}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
        sizes[f"{layer}.num_batches_tracked"] = ()
    for block in range(shape.depth):
        for norm in ("norm1", "norm2"):
            sizes |= {f"blocks.{block}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        sizes |= {
            f"blocks.{block}.attn.qkv.weight": (3 * width, width),
            f"blocks.{block}.attn.proj.weight": (width, width),
            f"blocks.{block}.attn.proj.bias": (width,),
            f"blocks.{block}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{block}.mlp.fc1.bias": (4 * width,),
            f"blocks.{block}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{block}.mlp.fc2.bias": (width,),
        }
    generator = torch.Generator().manual_seed(0)
    state = {key: 0.02 * torch.randn(size, generator=generator) for key, size in sizes.items()}
    state = {key: value.abs() if key.endswith("running_var") else value for key, value in state.items()}
    return {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else value.half() for key, value in state.items()
    }


def picture(size: tuple[int, int] = (300, 240), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "dim"), [("ViT-B/32", 512), ("ViT-B/16", 768)])
def test_unicom_loads_its_published_layout_strictly(tmp_path: Path, name: str, dim: int) -> None:
    path = tmp_path / "unicom.pt"
    torch.save(unicom_checkpoint(name), path)
    teacher = load_teacher(f"unicom:{name}", str(path), device="cpu", precision="fp32")
    batch = teacher.collate([teacher.preprocess(picture(seed=seed)) for seed in range(2)])
    assert batch.shape == (2, 3, 224, 224)
    features = teacher.encode(batch)
    assert features.shape == (2, dim)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1])


def test_unicom_b32_computes_what_its_description_says() -> None:
    """One block, written out: pre-norm attention without qkv bias, ReLU6, patches flattened position by position."""
    name, functional = "ViT-B/32", torch.nn.functional
    state = {key: value.float() for key, value in unicom_checkpoint(name).items()}
    network = UnicomViT(MODELS[name]).eval()
    network.load_state_dict({k: v if "num_batches" not in k else torch.tensor(0) for k, v in state.items()})
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    x = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=32)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    for block in range(12):
        part = {key.removeprefix(f"blocks.{block}."): value for key, value in state.items()}
        y = functional.layer_norm(x, (768,), part["norm1.weight"], part["norm1.bias"], 1e-5)
        q, k, v = (y @ part["attn.qkv.weight"].T).reshape(2, 49, 3, 12, 64).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8.0, dim=-1)
        x = x + (weights @ v).transpose(1, 2).reshape(2, 49, 768) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        y = functional.layer_norm(x, (768,), part["norm2.weight"], part["norm2.bias"], 1e-5)
        y = (y @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]).clamp(0, 6)
        x = x + y @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
    x = functional.layer_norm(x, (768,), state["norm.weight"], state["norm.bias"], 1e-5).flatten(1)
    for linear, norm in (("feature.0", "feature.1"), ("feature.2", "feature.3")):
        x = x @ state[f"{linear}.weight"].T
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = functional.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=2e-5)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), x, rtol=1e-3, atol=1e-4)


def test_unicom_refuses_other_checkpoints(tmp_path: Path) -> None:
    state, path = unicom_checkpoint("ViT-B/32"), tmp_path / "unicom.pt"
    for broken in (
        {**state, "cls_token": torch.zeros(1)},
        {key: value for key, value in state.items() if key != "norm.bias"},
        {**state, "pos_embed": torch.zeros(1, 50, 768)},
    ):
        torch.save(broken, path)
        with pytest.raises(TeacherError, match=r"is not a checkpoint of unicom:ViT-B/32 in Unicom's key layout"):
            load_teacher("unicom:ViT-B/32", str(path), device="cpu")
    path.write_bytes(b"junk")
    with pytest.raises(TeacherError, match="is not a checkpoint"):
        load_teacher("unicom:ViT-B/32", str(path), device="cpu")
    with pytest.raises(TeacherError, match="do not exist"):
        load_teacher("unicom:ViT-B/32", str(tmp_path / "absent.pt"), device="cpu")


class Malicious:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the checkpoint ran')",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "unicom.pt"
    torch.save({"norm.bias": Malicious()}, path)
    with pytest.raises(TeacherError, match="is not a checkpoint"):
        load_teacher("unicom:ViT-B/32", str(path), device="cpu")


def test_fingerprints_follow_weights_and_precision(tmp_path: Path) -> None:
    path, state = tmp_path / "unicom.pt", unicom_checkpoint("ViT-B/32")
    torch.save(state, path)
    one = load_teacher("unicom:ViT-B/32", str(path), device="cpu", precision="fp32")
    half = load_teacher("unicom:ViT-B/32", str(path), device="cpu", precision="bf16")
    state["norm.bias"][0] += 1
    torch.save(state, path)
    other = load_teacher("unicom:ViT-B/32", str(path), device="cpu", precision="fp32")
    assert len({one.fingerprint, half.fingerprint, other.fingerprint}) == 3
    assert one.slug == "unicom-ViT-B-32"


def test_bf16_features_stay_near_fp32() -> None:
    teacher = load_teacher("minilm", device="cpu", precision="bf16")
    cosine = teacher.precision_cosine(["a red circle", "two dogs on a beach"])
    assert 0.999 <= cosine < 1.0


def test_a_precision_that_strays_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for precision, said in (("fp32", False), ("bf16", True)):
        teachers = Teachers(image="tiny_teachers:imprecise", text="tiny_teachers:length")
        settings = Extract(workers=0, precision=precision)
        scenes = Data(scenes=Scenes(train=2, val=0, test=0))
        extract(ExtractParameters(data=scenes, teachers=teachers, extract=settings), tmp_path / precision)
        assert ("in bf16 strays from fp32: smallest cosine" in " ".join(capsys.readouterr().err.split())) == said


def similarity_scores(teacher: Teacher, first: list[str], second: list[str]) -> np.ndarray:
    encoded = []
    for texts in (first, second):
        features = [teacher.encode(texts[start : start + 128]) for start in range(0, len(texts), 128)]
        encoded.append(torch.cat(features))
    return torch.nn.functional.cosine_similarity(*encoded).numpy()


def minilm_folder() -> Path:
    found = importlib.util.find_spec(MINILM_PACKAGE)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


def test_minilm_reaches_its_published_sts13(shared_data: Path) -> None:
    rows = []
    for path in sorted((shared_data / "sts").glob("STS13.*.tsv")):
        rows += [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    gold, first, second = zip(*rows, strict=True)
    teacher = load_teacher(f"sentence-transformers:{minilm_folder()}", device="cpu", precision="fp32")
    correlation = (
        100 * spearmanr(similarity_scores(teacher, list(first), list(second)), np.array(gold, float)).statistic
    )
    assert correlation == pytest.approx(80.6, abs=0.2)


def test_minilm_is_checked_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.teachers.sentences.MINILM_SHA256", "0" * 64)
    with pytest.raises(TeacherError, match=r"is not the genuine all-MiniLM-L6-v2: sha256 53aa5117"):
        load_teacher("minilm", device="cpu")


def test_hog_color_tells_shapes_and_colours_apart() -> None:
    teacher = load_teacher("hog-color")

    def features(colour: str, box: tuple[int, int, int, int]) -> torch.Tensor:
        canvas = Image.new("RGB", (96, 80), "grey")
        canvas.paste(colour, box)
        vector = teacher.encode(teacher.collate([teacher.preprocess(canvas)]))[0]
        assert vector.shape == (teacher.dim,)
        return vector

    red, again = features("red", (10, 10, 40, 40)), features("red", (10, 10, 40, 40))
    wide, blue = features("red", (10, 10, 90, 20)), features("blue", (10, 10, 40, 40))
    torch.testing.assert_close(red, again, rtol=0, atol=0)
    assert red.norm() == pytest.approx(1.0, abs=1e-5)
    assert red @ blue < 0.9
    assert red @ wide < 0.9
    assert torch.isfinite(features("grey", (0, 0, 1, 1))).all(), "a plain picture has no gradient"


def test_a_user_s_own_teacher_plugs_in_by_name() -> None:
    teacher = load_teacher("tiny_teachers:mean_colour", "my.weights", device="cpu")
    assert (teacher.modality, teacher.dim, teacher.slug) == ("image", 3, "tiny_teachers-mean_colour")
    assert teacher.fingerprint != load_teacher("tiny_teachers:mean_colour", "other", device="cpu").fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unicorn:ViT-B/32", "No teacher is called 'unicorn:ViT-B/32'. Known: hog-color; minilm; unicom:"),
        ("unicom:ViT-H/14", "is not a Unicom model; there are unicom:ViT-B/32"),
        ("no_such_module:factory", "the module no_such_module cannot be imported"),
        ("tiny_teachers:nothing", "has nothing callable named 'nothing'"),
        ("tiny_teachers:not_a_teacher", "returned a str, expected a pipeline.teachers.Teacher"),
        ("sentence-transformers:/nowhere/model", "could not be loaded"),
    ],
)
def test_unknown_teachers_are_explained(spec: str, message: str) -> None:
    with pytest.raises(TeacherError) as caught:
        load_teacher(spec, device="cpu")
    assert message in caught.value.message
