"""The models to measure: checkpoints of ours, open_clip models and teachers give what they give elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_images import encoded
from PIL import Image
from refusals import refused
from safetensors.torch import save_file

from models.aligned import AlignedModel
from models.checkpoint import save_checkpoint
from models.inputs import Padded
from models.students import load_student
from models.teachers import load_teacher
from stores import CusaError, ParameterError, StudentError, TeacherError, TrainingError, TrainParameters
from stores.errors import CheckpointError
from stores.parameters import Student, as_dict
from train.evaluation.models import StudentModel, check_embeddings, load_model
from train.evaluation.sts import embed_texts

TEXTS = [f"a picture of {'many ' * (number % 7)}things, number {number}" for number in range(70)]
SMALL = Student().model


@pytest.fixture(scope="module")
def trained() -> AlignedModel:
    """A student whose four heads differ from the identity and from each other."""
    torch.manual_seed(0)
    model = AlignedModel(load_student(Student()))
    for head in (*model.heads.values(), *model.uni_heads.values()):
        torch.nn.init.normal_(head[1].weight, std=0.1)
    return model.eval()


def checkpoint(folder: Path, model: AlignedModel) -> Path:
    path = folder / "run" / "best.safetensors"
    path.parent.mkdir()
    save_checkpoint(path, {"model": model}, {"epoch": 0, "parameters": as_dict(TrainParameters())})
    return path


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(256, size=(80, 64, 3), dtype=np.uint8)) for _ in range(3)]


def files() -> list[bytes]:
    return [encoded(picture, "PNG") for picture in pictures()]


def test_a_checkpoint_is_measured_by_its_uni_modal_heads(tmp_path: Path, trained: AlignedModel) -> None:
    path = checkpoint(tmp_path, trained)
    images = torch.stack([trained.student.eval_transform(image) for image in pictures()])
    with torch.inference_mode():
        encoded = trained.encode("image", images)
        expected_images, cross = encoded.unimodal.numpy(), encoded.vector.numpy()
        tokens = trained.student.tokenizer(TEXTS)
        expected_texts = trained.encode("text", Padded(tokens, tokens >= 0)).unimodal.numpy()
    for spec in (path, path.parent):
        model = load_model(str(spec), device="cpu", precision="fp32")
        assert model.modalities == ("image", "text")
        found = model.encode_images([model.prepare_image(data) for data in files()])
        np.testing.assert_allclose(found, expected_images, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.encode_texts(TEXTS), expected_texts, rtol=1e-4, atol=1e-5)
        assert not np.allclose(found, cross, rtol=1e-2), "the cross-modal head gives something else"
        assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_an_open_clip_model_is_measured_without_heads(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    student = load_student(Student())
    weights = tmp_path / name
    save = torch.save if weights.suffix == ".pt" else save_file
    save(student.model.state_dict(), weights)  # type: ignore[attr-defined,operator]
    model = load_model(f"{SMALL}/{weights}", device="cpu", precision="fp32")
    assert isinstance(model, StudentModel)
    student.eval()  # type: ignore[attr-defined]
    with torch.inference_mode():
        images = torch.stack([student.eval_transform(image) for image in pictures()])
        expected = student.encode_image(images).numpy()
        encoded = model.aligned.encode("image", images)
    found = model.encode_images([model.prepare_image(data) for data in files()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.vector, encoded.unimodal)


def test_teachers_give_what_they_give_in_stage_one() -> None:
    texts, images = load_teacher("tiny_teachers:length", device="cpu"), load_teacher("hog-color", device="cpu")
    model = load_model("tiny_teachers:length", device="cpu", precision="fp32")
    assert model.modalities == ("text",)
    np.testing.assert_array_equal(model.encode_texts(TEXTS), texts.encode(texts.collate(texts.prepare(TEXTS))))
    model = load_model("hog-color", device="cpu")
    assert model.modalities == ("image",)
    found = model.encode_images([model.prepare_image(data) for data in files()])
    expected = images.encode(images.collate(images.prepare(pictures())))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_texts_keep_their_places_though_batches_are_made_by_length() -> None:
    model = load_model("tiny_teachers:counting", device="cpu", precision="fp32")
    found = embed_texts(model, TEXTS, "texts")
    np.testing.assert_array_equal(found[:, 12], [text.count("m") for text in TEXTS])


def test_wrong_models_are_refused(tmp_path: Path, trained: AlignedModel) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"empty holds no best.safetensors"):
        load_model(str(tmp_path / "empty"))
    with refused(CheckpointError, path=tmp_path / "absent.safetensors"):
        load_model(str(tmp_path / "absent.safetensors"))
    with pytest.raises(StudentError, match="random ones are not measured"):
        load_model(SMALL, device="cpu")
    with pytest.raises(TeacherError, match="No teacher is called 'nonsense'"):
        load_model("nonsense", device="cpu")
    path = checkpoint(tmp_path, trained)
    with pytest.raises(StudentError, match="takes no separate weights"):
        load_model(str(path), weights="x.pt", device="cpu")
    save_checkpoint(path, {"model": trained}, {"epoch": 0, "parameters": {"student": {"modle": "x"}}})
    with refused(ParameterError, where="student.modle", path=f"{path} (its record)"):
        load_model(str(path), device="cpu")


def test_embeddings_of_another_shape_are_refused() -> None:
    with pytest.raises(CusaError, match=r"x gave the shape \(2, 3\) for 4 inputs"):
        check_embeddings(np.zeros((2, 3), np.float32), 4, "x")
    with pytest.raises(CusaError, match="not finite"):
        check_embeddings(np.full((4, 3), np.inf, np.float32), 4, "x")
