"""Training: model and checkpoint, resuming, refusing, measuring; on small real stores with the embedded student."""

from __future__ import annotations

import json
import math
import platform
import resource
import shutil
import signal
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import tiny_students
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import content
from refusals import refused
from safetensors.torch import load_file
from torch import Tensor, nn

from models.aligned import AlignedModel, Head
from models.checkpoint import frozen_digests, frozen_parameters, load_checkpoint, read_record, save_checkpoint
from models.encoded import Encoded
from models.students import as_student, load_student
from stores import ParameterError, Store, StoreError, StudentError, TrainingError, TrainParameters
from stores.errors import CheckpointError, RunFolderError
from stores.parameters import Evaluation, Loss, Student, Train
from train.evaluation.embed import SplitEncoded, embed_split
from train.evaluation.evaluate import Evaluated, evaluate
from train.evaluation.similarities import CosineSimilarities
from train.fit import optimisation, trainer
from train.fit.checkpoints import Checkpoints
from train.fit.claim import replaces_another
from train.fit.epoch import Epoch
from train.fit.processes import Processes, make_accelerator
from train.fit.stops import Stop
from train.losses.comparison import Instances
from train.losses.functional import info_nce
from train.losses.objective import compare, make_objective
from train.losses.terms import Temperature
from train.run import run

QUICK = TrainParameters(train=Train(epochs=2, batch_size=16, device="cpu", precision="fp32", compare=False))


def changed(**settings: Any) -> TrainParameters:
    return replace(QUICK, train=replace(QUICK.train, **settings))


def weights(path: Path) -> dict[str, Tensor]:
    model = AlignedModel(load_student(Student()))
    load_checkpoint(path, {"model": model})
    return model.state_dict()


def figures(model: AlignedModel, encoded: SplitEncoded, store: Store) -> Evaluated:
    """Measure on the test split."""
    first, second = (encoded[modality].vector for modality in ("image", "text"))
    found = CosineSimilarities(first, second)
    return evaluate(model, encoded, lambda: found, store, "test", Evaluation(), Path("unused"))


def test_heads_start_as_the_identity_after_layer_norm() -> None:
    embedding = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Head(8)(embedding), nn.functional.layer_norm(embedding, (8,)))


def test_without_usa_the_cross_modal_embeddings_stand_in_for_the_uni_modal_ones() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for uni_modal in (False, True):
        model = AlignedModel(load_student(Student()), uni_modal=uni_modal).eval()
        assert any("uni" in name for name in model.state_dict()) == uni_modal
        nn.init.normal_(model.heads["image"][1].weight)
        encoded = model.encode("image", images)
        assert torch.equal(encoded.vector, encoded.unimodal) != uni_modal


def test_temperatures_stay_in_bounds_and_come_back_from_them() -> None:
    temperature = Temperature(0.05, 0.01, 0.10)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=10.0)
    for sign, bound in ((-1.0, 0.10), (1.0, 0.01)):
        optimizer.zero_grad()
        (sign * temperature()).backward()
        assert temperature.log.grad is not None
        assert temperature.log.grad.abs() > 0, "a temperature at its bound must still have a gradient"
        for _ in range(30):
            optimizer.step()
            temperature.clamp_()
        assert temperature().item() == pytest.approx(bound)


def test_a_checkpoint_brings_back_weights_and_optimiser(tmp_path: Path) -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW]:
        linear = nn.Linear(3, 2)
        return linear, torch.optim.AdamW(linear.parameters(), lr=0.1)

    def step(linear: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        linear(torch.ones(4, 3)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, optimizer = make()
    step(one, optimizer)
    save_checkpoint(tmp_path / "c.safetensors", {"model": one}, {"epoch": 3}, optimizer)
    other, other_optimizer = make()
    record = load_checkpoint(tmp_path / "c.safetensors", {"model": other}, other_optimizer)
    assert record["epoch"] == 3
    for _ in range(3):
        step(one, optimizer)
        step(other, other_optimizer)
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=0)


def test_parameters_that_do_not_learn_are_left_out_and_must_be_the_same_again(tmp_path: Path) -> None:
    def make(value: float) -> dict[str, nn.Module]:
        frozen = nn.Linear(3, 2).requires_grad_(False)
        nn.init.constant_(frozen.weight, value)
        nn.init.zeros_(frozen.bias)
        return {"model": nn.Sequential(frozen, nn.Linear(2, 2))}

    one, path = make(1.0), tmp_path / "c.safetensors"
    frozen = frozen_parameters(one)
    save_checkpoint(path, one, {"frozen": frozen_digests(one, frozen)}, left_out=frozen)
    assert {name for name in load_file(path) if name.startswith("model.")} == {"model.1.weight", "model.1.bias"}
    again = make(1.0)
    load_checkpoint(path, again)
    torch.testing.assert_close(again["model"].state_dict(), one["model"].state_dict(), rtol=0, atol=0)
    with refused(CheckpointError, problem="the parameters that do not learn are others now", path=path):
        load_checkpoint(path, make(2.0))


def test_weights_of_which_nothing_tells_how_good_they_are_are_no_best_ones(tmp_path: Path) -> None:
    modules = {"model": nn.Linear(3, 2)}
    checkpoints = Checkpoints(tmp_path, QUICK, modules, torch.optim.AdamW(modules["model"].parameters()), {})
    figures = {"loss": {}, "temperatures": {}, "learning_rate": 0.1, "samples_per_second": 1.0, "wait": 0.0}
    with refused(TrainingError, where="eval.validation", found="nan"):
        checkpoints.keep([Epoch(epoch=0, validation_rsum=math.nan, **figures)])


def test_buffers_are_shared_before_measuring_and_not_with_every_forward_pass() -> None:
    handler = make_accelerator(QUICK).ddp_handler
    assert handler is not None
    assert not handler.broadcast_buffers


def test_foreign_and_broken_checkpoints_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with refused(CheckpointError, problem="no such file", path=path):
        read_record(path)
    path.write_bytes(b"junk")
    with refused(CheckpointError, path=path, expected="a checkpoint of cusa-train"):
        read_record(path)
    save_checkpoint(path, {"model": nn.Linear(3, 2)}, {})
    with refused(CheckpointError, path=path) as caught:
        load_checkpoint(path, {"model": nn.Linear(4, 2)})
    assert "does not fit this model" in caught.value.problem
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 4])
    with refused(CheckpointError, path=path, expected="a checkpoint of cusa-train"):
        load_checkpoint(path, {"model": nn.Linear(3, 2)})


def test_a_run_leaves_what_it_should(scenes_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    measured = run(replace(QUICK, train=replace(QUICK.train, compare=True)), scenes_store, folder)
    assert json.loads((folder / "metrics.json").read_text()) == measured
    assert list(measured) == ["infonce", "soft_labels"]
    for figures in measured.values():
        percent = [*figures["image_to_text"].values(), *figures["text_to_image"].values()]
        assert all(0 <= value <= 100 for value in percent)
        assert figures["RSUM"] == pytest.approx(sum(percent))
        assert set(figures["true_relevance"]["text_to_image"]) == {"mAP@R", "R-Precision", "R@1"}
        assert {"image_class_R@1", "caption_spearman", "best_epoch", "validation_RSUM"} <= set(figures)
    for name in ("best.safetensors", "last.safetensors", "infonce/best.safetensors", "plots/curves.png", "run.json"):
        assert (folder / name).exists()
    lines = (folder / "dvclive/plots/metrics/loss/CSA.tsv").read_text().splitlines()
    assert len(lines) == 3, "a header and two epochs"
    assert not (folder / "infonce/dvclive/plots/metrics/loss/CSA.tsv").exists()


def test_training_learns(scenes_store: Store, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    stop = Stop(Processes(accelerator))
    training = trainer.Training(tmp_path, scenes_store, changed(epochs=6), "soft_labels", accelerator, stop)
    history = training.fit()
    for part in ("InfoNCE", "CSA", "USA"):
        assert history[-1].loss[part] < 0.8 * history[0].loss[part]


def test_a_stopped_run_goes_on_with_other_workers(scenes_store: Store, tmp_path: Path) -> None:
    run(changed(epochs=2), scenes_store, tmp_path / "whole")
    run(changed(epochs=2), scenes_store, tmp_path / "cut")
    (tmp_path / "cut" / "metrics.json").unlink()
    measured = run(changed(epochs=2, workers=2, cache_gib=0.0), scenes_store, tmp_path / "cut")
    assert measured == json.loads((tmp_path / "whole" / "metrics.json").read_text())
    run(changed(epochs=2, workers=2), scenes_store, tmp_path / "workers")
    one, other = (weights(tmp_path / name / "last.safetensors") for name in ("whole", "workers"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)


def test_a_seed_beyond_32_bits_trains_and_counts_in_full(scenes_store: Store, tmp_path: Path) -> None:
    stop = Stop(Processes(accelerator := Accelerator(cpu=True, mixed_precision="no")))
    large, again, zero = (
        trainer.Training(tmp_path / name, scenes_store, changed(epochs=1, seed=seed), name, accelerator, stop)
        for name, seed in (("large", 2**40), ("again", 2**40), ("zero", 0))
    )
    starts = [torch.cat([p.flatten() for p in made.model.parameters()]) for made in (large, again, zero)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2]), "their lower 32 bits are the same"
    assert len(large.fit()) == 1


def test_bf16_is_for_a_training_s_scores_too_and_not_for_its_losses_or_for_ranks(
    scenes_store: Store, tmp_path: Path
) -> None:
    student = Student(model="tiny_students:Lowered")
    run(replace(changed(epochs=1, batch_size=120, precision="bf16"), student=student), scenes_store, tmp_path / "run")
    assert tiny_students.Lowered.compared == {(True, torch.bfloat16), (False, torch.float32)}
    model = tiny_students.Lowered()
    vectors = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    encoded = {"image": Encoded(vectors[0]), "text": Encoded(vectors[1])}
    rows = Instances(encoded, torch.arange(6), torch.arange(6))
    with torch.autocast("cpu", torch.bfloat16):
        lowered, _ = compare(make_objective(Loss(alpha=0, beta=0)), rows, rows, as_student(model).scorer)
        scores = model.similarity(*vectors)
    torch.testing.assert_close(lowered, info_nce(scores.float(), 0.05), rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_in_bf16(scenes_store: Store, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        run(changed(epochs=1, device="cuda", precision=precision), scenes_store, tmp_path / precision)
        losses[precision] = read_record(tmp_path / precision / "last.safetensors")["history"][0]["loss"]["total"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != pytest.approx(losses["fp32"], rel=1e-5), "bf16 must have been used"
    kept = load_file(tmp_path / "bf16" / "best.safetensors").values()
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}


def test_a_compiled_student_trains_as_it_does_by_itself(
    scenes_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as ever; inductor, which takes a C++ compiler 20 seconds, is left out."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    student = Student(model="tiny_students:Dropping")
    measured = [
        run(replace(changed(compile=compiled, micro_batch=7), student=student), scenes_store, tmp_path / str(compiled))
        for compiled in (False, True)
    ]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert measured[1] == measured[0]
    one, other = (load_file(tmp_path / name / "best.safetensors") for name in ("False", "True"))
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_another_run_s_folder_is_not_taken(scenes_store: Store, tmp_path: Path) -> None:
    run(changed(epochs=1), scenes_store, tmp_path / "run")
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    with refused(RunFolderError, problem="holds another run", where="train.seed (0 → 1)"):
        run(changed(epochs=1, seed=1), scenes_store, tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best
    run(changed(epochs=1, seed=1), scenes_store, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() != best


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place(
    scenes_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = optimisation.compare, []

    def broken(*arguments: Any) -> Any:
        total, parts = real(*arguments)
        calls.append(total)
        if len(calls) == 15 + 8:
            parts["CSA"] = parts["CSA"] * float("nan")
        return total, parts

    monkeypatch.setattr(optimisation, "compare", broken)
    with pytest.raises(TrainingError) as caught:
        run(QUICK, scenes_store, tmp_path / "run")
    assert "not finite at step 8 of epoch 2: InfoNCE" in caught.value.message
    assert "CSA nan" in caught.value.message
    assert f"The last good checkpoint is {tmp_path / 'run' / 'last.safetensors'} (epoch 1)" in caught.value.message
    for tensor in weights(tmp_path / "run" / "last.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_missing_splits_and_teachers_are_named_before_training(scenes_store: Store, tmp_path: Path) -> None:
    with refused(ParameterError, where="eval.validation", found="dev"):
        run(replace(QUICK, eval=Evaluation(validation="dev")), scenes_store, tmp_path / "run")
    with refused(ParameterError, where="train.final_learning_rate", found=1e-5):
        run(changed(learning_rate=1e-6), scenes_store, tmp_path / "run")
    with pytest.raises(StoreError, match="no features 'unicom-ViT-B-32'"):
        teachers = replace(QUICK.teachers, image="unicom:ViT-B/32")
        run(replace(QUICK, teachers=teachers), scenes_store, tmp_path / "run")


def test_evaluation_follows_the_embeddings(scenes_store: Store) -> None:
    """With embeddings made from the truth itself, the figures are those of a perfect model."""
    model = AlignedModel(load_student(Student()))
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    encoded = embed_split(model, scenes_store, "test", accelerator, batch_size=7, workers=0)
    assert {modality: items.vector.shape for modality, items in encoded.items()} == {
        "image": (20, 128),
        "text": (100, 128),
    }
    owner = torch.from_numpy(np.repeat(np.arange(20), 5))
    perfect = {"image": Encoded(torch.eye(20)), "text": Encoded(torch.eye(20)[owner])}
    assert figures(model, perfect, scenes_store).figures["RSUM"] == 600.0
    labels = scenes_store.samples["label"].slice(scenes_store.rows("test", "sample")[0], 20).to_pylist()
    classes = torch.eye(20)[[sorted(set(labels)).index(label) for label in labels]]
    labelled = {**perfect, "image": Encoded(torch.eye(20), classes)}
    found = figures(model, labelled, scenes_store).figures["image_class_R@1"]
    assert found == 100 * np.mean([labels.count(label) > 1 for label in labels])


def test_a_figure_that_the_data_do_not_allow_costs_no_other(
    scenes_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AlignedModel(load_student(Student()))
    encoded = embed_split(model, scenes_store, "test", Accelerator(cpu=True), batch_size=32, workers=0)
    whole = figures(model, encoded, scenes_store)
    assert whole.faults == {}
    # Without the pairs of the split's first caption, this has no image that it is true of.
    first = scenes_store.rows("test", "caption")[0]
    left = scenes_store.relevance.filter(pc.not_equal(scenes_store.relevance["caption"], first))
    monkeypatch.setattr(Store, "relevance", left)
    same = {**encoded, "text": encoded["text"]._replace(uni=torch.ones(100, 128))}
    found, faults = figures(model, same, scenes_store)
    assert found == {name: value for name, value in whole.figures.items() if name not in faults}
    assert set(faults) == {"true_relevance", "caption_spearman"}
    assert "1 queries have no relevant candidate" in faults["true_relevance"]
    assert "pairs are all equally similar" in faults["caption_spearman"]


def test_a_user_s_own_student_trains(scenes_store: Store, tmp_path: Path) -> None:
    measured = run(replace(QUICK, student=Student(model="tiny_students:Weighing")), scenes_store, tmp_path / "run")
    history = read_record(tmp_path / "run" / "last.safetensors")["history"]
    assert history[1]["loss"]["total"] < history[0]["loss"]["total"]
    best = load_file(tmp_path / "run" / "best.safetensors")
    (weight,) = (tensor for name, tensor in best.items() if name.endswith("student.weight"))
    assert (weight - 1).abs().max() > 1e-3, "its similarity must learn"
    assert "RSUM" in measured["soft_labels"]


def test_a_refused_run_keeps_no_one_from_its_folder(scenes_store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch"):
        run(changed(batch_size=1000), scenes_store, tmp_path / "run")
    run(changed(epochs=1), scenes_store, tmp_path / "run")


def test_a_student_s_own_similarity_is_measured_in_evaluation_mode(scenes_store: Store, tmp_path: Path) -> None:
    parameters = replace(changed(epochs=1), student=Student(model="tiny_students:Strict"))
    measured = run(parameters, scenes_store, tmp_path / "run")["soft_labels"]
    # An error of the student's own similarity costs the figures that need it, and no more.
    assert {"RSUM", "true_relevance"} <= measured.keys()


def test_batch_normalisation_is_not_split_into_micro_batches(scenes_store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train.micro_batch is 4, but the student normalises over the batch"):
        run(changed(micro_batch=4), scenes_store, tmp_path / "run")


def test_two_runs_do_not_share_a_folder(scenes_store: Store, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("a person's own")
    (tmp_path / ".run.cusa-lock").write_text(f"1\n{platform.node()}\n")
    with pytest.raises(TrainingError, match=r"Another run is at work on .*run: process 1 on host"):
        run(changed(epochs=1), scenes_store, tmp_path / "run")
    assert (tmp_path / "run.lock").read_text() == "a person's own"


def test_a_typo_costs_nobody_the_run_that_it_would_replace(
    scenes_run: Path, scenes_store: Store, tmp_path: Path
) -> None:
    folder = shutil.copytree(scenes_run, tmp_path / "run")
    before = content(folder)
    for wrong in (changed(epochs=1, batch_size=100_000), changed(epochs=1, micro_batch=3)):
        with pytest.raises(TrainingError):
            run(wrong, scenes_store, folder, overwrite=True)
        assert content(folder) == before
    with pytest.raises(StudentError):
        run(replace(changed(epochs=1), student=Student(model="open-clip:tpyo")), scenes_store, folder, overwrite=True)
    assert content(folder) == before


def test_a_finished_run_without_its_weights_is_kept(scenes_run: Path, scenes_store: Store, tmp_path: Path) -> None:
    folder = shutil.copytree(scenes_run, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    (folder / "best.safetensors").unlink()
    with refused(RunFolderError, where="best.safetensors"):
        replaces_another(folder, record, overwrite=False)
    assert replaces_another(folder, record, overwrite=True)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    other = {**record, "parameters": {}}
    with refused(RunFolderError, problem="holds another run"):
        replaces_another(folder, other, overwrite=False)
    with refused(RunFolderError, problem=f"lies within the store {scenes_store.root}"):
        replaces_another(scenes_store.root / "run", record, overwrite=True)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save_checkpoint(tmp_path / "c.safetensors", {"model": nn.Linear(100, 100)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_mixed_stores_is_part_of_a_run(scenes_store: Store, tmp_path: Path) -> None:
    others = []
    for name in ("a", "b"):
        shutil.copytree(scenes_store.root, tmp_path / name)
        others.append(str(tmp_path / name))
    one, other = (dict.fromkeys(order, 0.25) for order in (others, others[::-1]))
    run(changed(epochs=1, mix_in=one), scenes_store, tmp_path / "run")
    assert [path for path, _ in json.loads((tmp_path / "run" / "run.json").read_text())["mixed_in"]] == others
    with refused(RunFolderError, problem="holds another run") as caught:
        run(changed(epochs=1, mix_in=other), scenes_store, tmp_path / "run")
    assert str(caught.value.where).startswith("mixed_in (")


def test_a_store_without_truth_gives_what_it_can(tmp_path: Path, scenes_store: Store) -> None:
    root = tmp_path / "store"
    shutil.copytree(scenes_store.root, root)
    text = json.loads((root / "manifest.json").read_text())
    text["files"] = {name: digest for name, digest in text["files"].items() if "relevance" not in name}
    (root / "manifest.json").write_text(json.dumps(text))
    measured = run(changed(epochs=1), Store.open(root), tmp_path / "run")
    assert "true_relevance" not in measured["soft_labels"]
    assert "RSUM" in measured["soft_labels"]
