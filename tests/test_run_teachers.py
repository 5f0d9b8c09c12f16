"""A trained run as a teacher: its features are what the run is measured by, and its texts search images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from refusals import refused

from models.teachers import load_teacher
from models.trained import load_trained
from pipeline.inspection.cli import main as cusa_store
from pipeline.inspection.neighbours import Query, neighbours
from stores import CusaError, Store, TeacherError, TrainParameters
from stores.columns import Column
from stores.errors import TrainingError
from stores.parameters import Train
from train.evaluation.embed import embed_split
from train.fit.processes import make_accelerator


def slugs(store: Store) -> tuple[str, str]:
    """The folders of the run's towers: of images, of texts."""
    image, text = sorted(name for name in store.manifest.teachers if name.startswith("run-"))
    return image, text


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=1).numpy()


def test_a_run_s_features_are_what_it_is_measured_by(searched_store: Store, small_run: Path) -> None:
    """By either head, over a whole split; what is stored, to what bfloat16 keeps."""
    accelerator = make_accelerator(TrainParameters(train=Train(device="cpu", precision="fp32")))
    measured = embed_split(load_trained(small_run).model, searched_store, "test", accelerator, 16, 0)
    rows = searched_store.rows("test", "sample"), searched_store.rows("test", "caption")
    files = [searched_store.images[row] for row in rows[0].tolist()]
    texts = Column(searched_store.captions["text"]).values(rows[1])
    for modality, slug, own in zip(("image", "text"), slugs(searched_store), rows, strict=True):
        expected = {"": unit(measured[modality].vector), "@uni": unit(measured[modality].unimodal)}
        for head in expected:
            teacher = load_teacher(f"run:{small_run}{head}", device="cpu", precision="fp32", modality=modality)
            items = [teacher.preprocess_file(one) for one in files] if modality == "image" else teacher.prepare(texts)
            found = unit(teacher.encode(teacher.collate(items)))
            np.testing.assert_allclose(found, expected[head], atol=1e-5)
        assert np.abs(expected[""] - expected["@uni"]).max() > 1e-2, "the heads give different things"
        stored = searched_store.features(slug).gather(own).astype(np.float32)
        assert (stored * expected[""]).sum(axis=1).min() > 0.999


def test_a_text_searches_images_by_a_run(searched_store: Store) -> None:
    """The picture that a caption of the training split describes comes first, for most captions."""
    image, text = slugs(searched_store)
    captions = Column(searched_store.captions["text"])
    found = [neighbours(searched_store.root, Query(text=captions.values(np.array([row]))[0]), 3) for row in (0, 7, 55)]
    assert {one.teacher for one in found} == {image}
    assert {one.modality for one in found} == {"image"}
    owners = Column(searched_store.captions["sample"]).numbers(np.array([0, 7, 55])).tolist()
    assert [one.found[0].sample for one in found] == owners
    by_name = neighbours(searched_store.root, Query(text=captions.values(np.array([7]))[0], teacher=text), 1)
    assert (by_name.modality, by_name.found[0].row) == ("text", 7), "the text tower searches captions"
    result = CliRunner().invoke(
        cusa_store, ["neighbours", str(searched_store.root), "--text", found[0].found[0].texts[0]]
    )
    assert result.exit_code == 0, result.output
    assert "nearest images of train" in result.output


def test_a_run_is_added_to_the_store_as_it_was_made(searched_store: Store, scenes_store: Store) -> None:
    """Not to the data set that the parameters' defaults name; what was there stays as the teachers of missing."""
    assert searched_store.manifest.shards == scenes_store.manifest.shards
    assert searched_store.manifest.features.keys() > scenes_store.manifest.features.keys()
    result = CliRunner().invoke(cusa_store, ["verify", str(searched_store.root), "--deep", "--sample", "4"])
    assert result.exit_code == 0, result.output


def test_runs_that_are_no_teachers_are_refused(scenes_run: Path, small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no best.safetensors"):
        load_teacher(f"run:{tmp_path}")
    with refused(TeacherError, where=f"run:{scenes_run / 'infonce'}@uni"):
        load_teacher(f"run:{scenes_run / 'infonce'}@uni")
    with pytest.raises(TeacherError, match="takes no separate weights"):
        load_teacher(f"run:{small_run}", "x.pt")


def test_a_student_of_stored_features_encodes_no_new_pictures(scenes_store: Store, tmp_path: Path) -> None:
    from stores.parameters import Head, Student
    from train.run import run

    heads = {"image": Head(features="hog-color"), "text": Head(features="minilm")}
    student, train = Student(model="heads", heads=heads, dim=8), Train(epochs=1, batch_size=48, compare=False)
    run(TrainParameters(train=train, student=student), scenes_store, tmp_path / "run")
    with pytest.raises(CusaError, match=r"its image input, found 'Stored', expected Pixels"):
        load_teacher(f"run:{tmp_path / 'run'}", device="cpu")
