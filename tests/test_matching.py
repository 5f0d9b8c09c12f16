"""Image-text matching in training: what is drawn, the loss by a plain loop, micro-batches, processes, a whole run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from test_processes import finish, start
from timm.layers import DropPath
from tiny_rerankers import tiny_blip, tiny_x2vlm
from torch import Tensor, nn
from torch.nn import functional

from models.aligned import AlignedModel
from models.blip import Blip
from models.checkpoint import read_record
from models.encoded import Encoded
from models.inputs import Padded, Pixels, Tokens
from models.matching import match_in_training
from models.small_fusion import small_fusion
from stores import Store, TrainingError, TrainParameters
from stores.errors import ParameterError, StudentError
from stores.parameters import Evaluation, Loss, Matching, Rerank, Student, Train
from train.fit.grad_cache import cached_backward
from train.fit.optimisation import Learner
from train.fit.unreached import freeze_unreached
from train.losses.comparison import Instances
from train.losses.image_text_matching import draw
from train.losses.objective import compare, make_objective
from train.run import run

PAIRS = 6
GROUPS = torch.tensor([0, 1, 2, 3, 3, 4])


def test_negatives_are_drawn_by_the_softmax_and_never_of_the_same_image() -> None:
    torch.manual_seed(0)
    scores, same = torch.randn(PAIRS, PAIRS), GROUPS[:, None] == GROUPS
    drawn = [draw(scores, same, 0.5) for _ in range(4000)]
    texts, images = (torch.stack(some) for some in ([d.texts for d in drawn], [d.images for d in drawn]))
    for found, by in ((texts, scores), (images, scores.T)):
        expected = torch.softmax(by / 0.5, dim=1).masked_fill(same, 0)
        expected = expected / expected.sum(dim=1, keepdim=True)
        often = torch.stack([(found == place).float().mean(dim=0) for place in range(PAIRS)], dim=1)
        torch.testing.assert_close(often, expected, atol=0.03, rtol=0)
        assert not often[same].any()


def test_a_batch_of_one_image_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"all 3 pairs .* are of one image"):
        draw(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), 0.07)


@pytest.fixture
def learner() -> Learner:
    loss = Loss(recipe="x2vlm", alpha=0, beta=0, matching=Matching(contrast=0.5, weight=2.0, soft_negatives=0.8))
    learner = Learner(AlignedModel(tiny_x2vlm(), uni_modal=False), make_objective(loss)).double().train()
    for module in learner.modules():  # which would draw otherwise in each pass
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return learner


def batch() -> tuple[dict[str, Tensor | Padded], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(200, 30_000, (PAIRS, 8), generator=generator)
    mask = torch.arange(8) < torch.tensor([8, 4, 5, 8, 3, 6])[:, None]
    images = torch.randn(PAIRS, 3, 32, 32, generator=generator).double()
    teachers = {name: torch.randn(PAIRS, 5, generator=generator).double() for name in ("image", "text")}
    return {"image": images, "text": Padded(tokens * mask, mask)}, teachers


def objective(learner: Learner, encoded: dict[str, Encoded], teachers: dict[str, Tensor]) -> tuple[Tensor, dict]:
    rows = Instances(encoded, torch.arange(PAIRS), GROUPS, teachers)
    match = match_in_training(learner.model.student, Accelerator(cpu=True))
    set_seed(5)
    return compare(learner.objective, rows, rows, learner.model.scorer, match)


def test_the_loss_is_that_of_a_plain_loop_over_pairs(learner: Learner) -> None:
    inputs, teachers = batch()
    encoded = learner(inputs)
    total, parts = objective(learner, encoded, teachers)
    units = {name: functional.normalize(items.vector, dim=1) for name, items in encoded.items()}
    same = GROUPS[:, None] == GROUPS
    set_seed(5)
    images, texts = draw((units["image"] @ units["text"].T).detach(), same, 0.07)
    alike = {name: functional.normalize(features, dim=1) for name, features in teachers.items()}
    losses = []
    for row in range(PAIRS):
        soft = [0.8 * float(alike["image"][row] @ alike["image"][images[row]]), 0.0]
        soft[1] = 0.8 * float(alike["text"][row] @ alike["text"][texts[row]])
        pairs = ((row, row, 1.0), (int(images[row]), row, max(0.0, soft[0])), (row, int(texts[row]), max(0.0, soft[1])))
        for image, text, target in pairs:
            one, other = (encoded[n].take(slice(k, k + 1)) for n, k in (("image", image), ("text", text)))
            logs = learner.model.student.match(one, other).log_softmax(dim=1)[0]
            losses.append(-(target * logs[1] + (1 - target) * logs[0]))
    torch.testing.assert_close(parts["ITM"], torch.stack(losses).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(total.detach(), 0.5 * parts["InfoNCE"] + 2 * parts["ITM"])


@pytest.mark.parametrize(
    "make", [tiny_x2vlm, lambda: Blip(tiny_blip()), small_fusion], ids=["x2vlm", "blip", "small-fusion"]
)
def test_without_matching_all_that_learns_is_reached(make: Any) -> None:
    model = AlignedModel(make(), uni_modal=False)
    assert freeze_unreached(model, make_objective(Loss(recipe="x2vlm"))) == ""
    assert "do not learn" in freeze_unreached(model, make_objective(Loss(beta=0)))
    image, text = (model.interface.inputs[name] for name in ("image", "text"))
    assert isinstance(image, Pixels)
    assert isinstance(text, Tokens)
    Image.new("RGB", (64, 64)).save(picture := io.BytesIO(), "PNG")
    encoded = model({"image": image.prepare(picture.getvalue())[None], "text": text.texts(["a red square"])})
    sum(items.vector.square().sum() for items in encoded.values()).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_micro_batches_give_the_whole_batch_s_gradients(learner: Learner) -> None:
    """Those of the fusion encoder, which the loss reaches by itself, and of all else; activations computed again."""
    inputs, teachers = batch()
    expected, _ = objective(learner, learner(inputs), teachers)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learned = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert gradients.keys() == learned
    learner.zero_grad(set_to_none=True)
    learner.model.student.set_grad_checkpointing()

    def loss(encoded: dict[str, Encoded]) -> tuple[Tensor, dict]:
        return objective(learner, encoded, teachers)

    total, _ = cached_backward(learner, inputs, 4, loss, set_seed, Accelerator(cpu=True))
    torch.testing.assert_close(total, expected.detach(), rtol=1e-10, atol=0)
    for name, parameter in learner.named_parameters():
        if name in learned:
            # Of a key's bias it is zero but for rounding.
            close = 1e-9 * float(gradients[name].abs().max()) + 1e-13
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=close, msg=name)


def test_the_recipe_needs_a_contrastive_loss_and_a_student_that_matches(scenes_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="draws its negatives"):
        make_objective(Loss(recipe="x2vlm", original="hinge"))
    train = Train(epochs=1, batch_size=16, device="cpu", precision="fp32")
    with pytest.raises(StudentError, match="has no match of pairs"):
        run(TrainParameters(train=train, loss=Loss(recipe="x2vlm")), scenes_store, tmp_path / "run")


def test_a_run_is_reranked_by_its_own_student(scenes_store: Store, tmp_path: Path) -> None:
    """In bf16, with soft labels for negatives; the best epoch is chosen by what is reranked."""
    parameters = TrainParameters(
        train=Train(epochs=1, batch_size=24, device="cpu", precision="bf16", compare=False),
        student=Student(model="models.small_fusion:small_fusion"),
        loss=Loss(recipe="x2vlm", alpha=0, beta=0, matching=Matching(soft_negatives=0.5)),
        eval=Evaluation(rerank=Rerank(k=5), parts_gib=0.0),
    )
    folder = tmp_path / "run"
    run(parameters, scenes_store, folder)
    metrics = json.loads((folder / "metrics.json").read_bytes())
    assert list(metrics) == ["soft_labels"]
    assert metrics["soft_labels"]["reranked"]["RSUM"] > 0
    assert metrics["soft_labels"]["reranked"]["RSUM"] != metrics["soft_labels"]["RSUM"]
    assert {path.name for path in folder.iterdir()} >= {"reranking.md", "reranking.png", "student.safetensors"}
    losses = read_record(folder / "last.safetensors")["history"][0]["loss"]
    assert set(losses) == {"InfoNCE", "ITM", "total"}


def test_two_processes_learn_to_match_together(scenes_store: Store, tmp_path: Path) -> None:
    flags = ["-S", "train.batch_size=48", "-S", "train.epochs=1", "-S", "loss.recipe=x2vlm", "-S", "loss.alpha=0"]
    flags += ["-S", "loss.beta=0", "-S", "student.model=models.small_fusion:small_fusion"]
    flags += ["-S", "eval.rerank={student: self, k: 5}"]
    finish(start(2, scenes_store, tmp_path / "run", *flags))
    losses = read_record(tmp_path / "run" / "last.safetensors")["history"][0]["loss"]
    assert 0.3 < losses["ITM"] < 2
    assert json.loads((tmp_path / "run" / "metrics.json").read_bytes())["infonce"]["reranked"]["RSUM"] > 0
