"""X2-VLM and BLIP as students: their files, and matching against the parts' plain forward, one pair at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from tiny_rerankers import SMALL, tiny_blip, tiny_x2vlm, x2vlm_file
from torch import Tensor, nn
from torch.nn import functional

from models.blip import ENC, Blip, load_blip
from models.encoded import Encoded, map_tensors
from models.export import export_student, exported
from models.inputs import Padded
from models.matching import ScorerAsMatcher, matcher_of
from models.students import load_student
from stores import Store
from stores.errors import StudentError, WeightsError
from stores.parameters import Student
from train.data.mixture import Mixture

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LENGTHS = (7, 3, 5, 7)
PAIRS = ((0, 0), (2, 1), (1, 2), (2, 3), (0, 3))


def captions() -> Padded:
    ids = torch.randint(200, 30_000, (4, 8), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = 101
    mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    return Padded(ids * mask, mask)


def x2vlm_alone(student: nn.Module, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine and the logits of one pair, by the parts' own forward."""
    patches = student.vision_encoder.fc_norm(student.vision_encoder.forward_features(image[None])[:, 1:])
    tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
    hidden = student.text_encoder(input_ids=ids[None]).last_hidden_state
    seen = torch.zeros(1, 1, 1, len(ids))
    together = student.fusion_encoder(hidden, attention_mask=seen, encoder_hidden_states=tokens).last_hidden_state
    cosine = functional.cosine_similarity(student.vision_proj(tokens[:, 0]), student.text_proj(hidden[:, 0]))
    return cosine[0], student.itm_head(together[:, 0])[0]


def blip_alone(student: nn.Module, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine and the logits of one pair, by transformers' own forward; [ENC] first, in matching."""
    cosine = student.model(ids[None], image[None], use_itm_head=False).itm_score
    asked = torch.cat([torch.tensor([ENC]), ids[1:]])
    return cosine[0, 0], student.model(asked[None], image[None]).itm_score[0]


@pytest.mark.parametrize(
    ("make", "alone"),
    [(tiny_x2vlm, x2vlm_alone), (lambda: Blip(tiny_blip()), blip_alone)],
    ids=["x2vlm", "blip"],
)
@torch.no_grad()
def test_pairs_are_those_of_the_plain_forward(make: Callable[[], nn.Module], alone: Callable[..., object]) -> None:
    student, texts = make(), captions()
    images, words = student.encode("image", IMAGES), student.encode("text", texts)
    cosines = student.scorer.matrix(images, words)
    rows, columns = (torch.tensor(places) for places in zip(*PAIRS, strict=True))
    logits = student.match(images.take(rows), words.take(columns))
    prepared = student.prepare_match(images)
    for place, (image, text) in enumerate(PAIRS):
        cosine, expected = alone(student, IMAGES[image], texts.values[text, : LENGTHS[text]])
        assert cosines[image, text] == pytest.approx(cosine.item(), abs=1e-5)
        torch.testing.assert_close(logits[place], expected, atol=1e-5, rtol=0)
        # One image, prepared, for all texts.
        ready = map_tensors(lambda tensor, at=image: tensor[at : at + 1], prepared)
        torch.testing.assert_close(student.match(ready, words)[text], expected, atol=1e-5, rtol=0)
    assert logits[:, 1].std() > 1e-3


def test_x2vlm_files_are_read_strictly_and_written_back(tmp_path: Path) -> None:
    file = x2vlm_file(tmp_path / "x2vlm.th", tiny_x2vlm())
    student = load_student(Student(model=f"x2vlm:{file}"))
    assert student.size == SMALL
    original = torch.load(file, weights_only=True)["model"]
    learned = {key for key in original if "position_i" not in key}
    written, _ = exported(student, None)
    assert written.keys() == learned
    assert all(torch.equal(written[key], original[key]) for key in learned)
    # What is exported loads as well, with the heads of the text encoder, which no shape tells.
    export_student(student, tmp_path / "student.safetensors", 0.03)
    again = load_student(Student(model=f"x2vlm:{tmp_path / 'student.safetensors'}"))
    assert again.size == SMALL
    assert again.temp.item() == pytest.approx(0.03)
    # Another resolution stretches the table of positions.
    larger = load_student(Student(model=f"x2vlm:{file}@64"))
    assert larger.encode("image", torch.zeros(1, 3, 64, 64)).parts.shape == (1, 65, 24)
    tables = [one.vision_encoder.blocks[0].attn.relative_position_bias_table for one in (student, larger)]
    assert torch.equal(tables[0][-3:], tables[1][-3:])
    grids = [table[:-3].view(side, side, 3) for table, side in zip(tables, (7, 15), strict=True)]
    for corner in ((0, 0), (-1, 0), (0, -1)):
        torch.testing.assert_close(grids[0][corner], grids[1][corner], atol=1e-5, rtol=0)
    torch.testing.assert_close(grids[0][3, 3], grids[1][7, 7])
    torch.testing.assert_close(grids[0][3, 4], grids[1][7, 8])


def test_the_configuration_beside_the_weights_is_read(tmp_path: Path) -> None:
    state, _ = exported(tiny_x2vlm(), None)
    torch.save(state, tmp_path / "weights.th")
    (tmp_path / "config.json").write_text('{"vision": {"heads": 2}, "text_config": {"num_attention_heads": 8}}')
    assert load_student(Student(model=f"x2vlm:{tmp_path / 'weights.th'}")).size.text.heads == 8
    # Wherever it stands, and however; never the image encoder's.
    for name, said in {
        "weights.yaml": "beit: {num_heads: 2}\nbert: {num_attention_heads: 4}",
        "config.yml": "visual: {num_heads: 2}\ntext: {num_heads: '4'}",
        "weights_config.json": '{"num_heads": 2, "num_attention_heads": 4}',
    }.items():
        (tmp_path / "weights.json").write_text('{"max_tokens": 20}')
        (tmp_path / name).write_text(said)
        (tmp_path / "config.json").unlink(missing_ok=True)
        assert load_student(Student(model=f"x2vlm:{tmp_path / 'weights.th'}")).size.text.heads == 4
        (tmp_path / name).unlink()
    # The file's own configuration goes before a stranger's beside it, of which one that cannot be read is passed over.
    (tmp_path / "config.json").write_text('{"num_attention_heads": 8}')
    (tmp_path / "config.yaml").write_text("!custom [")
    torch.save({"model": state, "config": {"text_heads": 4}}, tmp_path / "own.th")
    assert load_student(Student(model=f"x2vlm:{tmp_path / 'own.th'}")).size.text.heads == 4
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "bert.json").write_text('{"num_attention_heads": 4}')
    torch.save({"model": state, "config": {"text_encoder": "bert.json"}}, tmp_path / "own.th")
    (tmp_path / "bert.json").rename(tmp_path / "config.json")
    assert load_student(Student(model=f"x2vlm:{tmp_path / 'own.th'}")).size.text.heads == 4
    # With nothing beside, as many as the image encoder has: here the text's width is no multiple of that.
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="multiple"):
        load_student(Student(model=f"x2vlm:{tmp_path / 'weights.th'}"))


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    state, _ = exported(tiny_x2vlm(), None)
    torch.save({"model": {**state, "bbox.0": torch.zeros(2)}, "config": {"heads": 4}}, tmp_path / "more.th")
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "other.th")
    for name, match in (("more.th", "bbox.0"), ("other.th", "weights of an X2-VLM"), ("absent.th", "do not exist")):
        with pytest.raises(WeightsError, match=match):
            load_student(Student(model=f"x2vlm:{tmp_path / name}"))
    with pytest.raises(StudentError, match="multiple of 16"):
        load_student(Student(model="x2vlm:base@100"))
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_student(Student(model=f"blip:{tmp_path}"))


def test_blip_loads_from_a_folder(tmp_path: Path) -> None:
    model = tiny_blip()
    model.save_pretrained(tmp_path)
    student = load_blip(str(tmp_path))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in student.model.state_dict().items())


def test_captions_are_cleaned_and_cut() -> None:
    texts = tiny_x2vlm().inputs["text"].texts(["A dog -- runs, fast!", "word " * 50])
    assert texts.values.shape == (2, 20)
    assert texts.mask.sum(dim=1).tolist() == [6, 20]
    assert texts.values[0, :6].tolist() == [101, 1037, 3899, 3216, 3435, 102]


def test_training_sees_images_augmented(scenes_store: Store) -> None:
    given = tiny_x2vlm().inputs["image"]
    items = Mixture([scenes_store], "train", {"image": given})
    plain = given.item(items, 0, augment=False)
    set_seed(0)
    seen = torch.stack([given.item(items, 0, augment=True) for _ in range(20)])
    assert seen.shape == (20, *plain.shape)
    assert seen.isfinite().all()
    assert all((one - other).abs().max() > 0.01 for one, other in zip([plain, *seen], seen, strict=False))


def test_a_scorer_of_pairs_matches_too() -> None:
    class Dot:
        pair_bytes = 4

        def matrix(self, first: Encoded, second: Encoded) -> Tensor:
            return first.vector @ second.vector.T

        def pairs(self, first: Encoded, second: Encoded) -> Tensor:
            return (first.vector * second.vector).sum(dim=1)

    one, others = Encoded(torch.tensor([[1.0, 2.0]])), Encoded(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert ScorerAsMatcher(Dot()).match(one, others).tolist() == [[0, 11], [0, 17]]
    with pytest.raises(StudentError, match="has no match of pairs"):
        matcher_of(load_student(Student()), "open-clip:small-clip")
