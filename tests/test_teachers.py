"""Teachers: Unicom's checkpoint layout, sentence-transformers, timm and open_clip against themselves, a user's own."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from conftest import small_scenes
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer
from PIL import Image
from refusals import refused
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer as TransformerModule
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MPNetConfig, MPNetModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from models.packaged_weights import packaged_file
from models.teachers import TeacherCard, load_teacher
from models.teachers.open_clip_towers import OpenClipTextTeacher
from models.teachers.teacher import Teacher
from models.teachers.unicom import MODELS, UnicomTeacher, UnicomViT
from pipeline.batch_size import batch_size, encode_backing_off, largest_batch, precision_cosine
from pipeline.extract import extract
from pipeline.inspection.neighbours import Query, neighbours
from stores import CusaError, ExtractParameters, Store, TeacherError
from stores.errors import WeightsError
from stores.parameters import Data, Extract, Scenes, Teachers


def unicom_checkpoint(name: str) -> dict[str, torch.Tensor]:
    """Random weights in Unicom's published key layout, written out from docs/methods.md and not from our module."""
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


def test_unicom_s_patch_tokens_are_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "unicom.pt"
    torch.save(unicom_checkpoint("ViT-B/32"), path)
    teacher = load_teacher("unicom:ViT-B/32@tokens", str(path), device="cpu", precision="fp32")
    assert (teacher.dim, TeacherCard.of(teacher).slug) == (37_632, "unicom-ViT-B-32-tokens")
    batch = teacher.collate([teacher.preprocess(picture())])
    tokens = teacher.encode(batch)
    head = load_teacher("unicom:ViT-B/32", str(path), device="cpu", precision="fp32")
    assert isinstance(head, UnicomTeacher)
    with torch.inference_mode():
        torch.testing.assert_close(head.network.feature(tokens), head.encode(batch), rtol=1e-4, atol=1e-5)
    assert tokens.view(49, 768).mean(dim=1).abs().max() < 0.2, "each token is normalised"


def test_unicom_refuses_other_checkpoints(tmp_path: Path) -> None:
    state, path = unicom_checkpoint("ViT-B/32"), tmp_path / "unicom.pt"
    for broken in (
        {**state, "cls_token": torch.zeros(1)},
        {key: value for key, value in state.items() if key != "norm.bias"},
        {**state, "pos_embed": torch.zeros(1, 50, 768)},
    ):
        torch.save(broken, path)
        with refused(TeacherError, path=path, expected="a checkpoint of unicom:ViT-B/32"):
            load_teacher("unicom:ViT-B/32", str(path), device="cpu")
    path.write_bytes(b"junk")
    with refused(TeacherError, path=path, expected="a checkpoint of unicom:ViT-B/32"):
        load_teacher("unicom:ViT-B/32", str(path), device="cpu")
    with pytest.raises(WeightsError, match="do not exist"):
        load_teacher("unicom:ViT-B/32", str(tmp_path / "absent.pt"), device="cpu")


class Malicious:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the checkpoint ran')",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "unicom.pt"
    torch.save({"norm.bias": Malicious()}, path)
    with refused(TeacherError, path=path, expected="a checkpoint of unicom:ViT-B/32"):
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
    assert TeacherCard.of(one).slug == "unicom-ViT-B-32"


def test_bf16_features_stay_near_fp32() -> None:
    teacher = load_teacher("minilm", device="cpu", precision="bf16")
    cosine = precision_cosine(teacher, teacher.collate(teacher.prepare(["a red circle", "two dogs on a beach"])))
    assert 0.999 <= cosine < 1.0


def test_a_precision_that_strays_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for precision, said in (("fp32", False), ("bf16", True)):
        teachers = Teachers(image="tiny_teachers:imprecise", text="tiny_teachers:length")
        settings = Extract(workers=0, precision=precision)
        scenes = Data(scenes=Scenes(train=2, val=0, test=0))
        extract(ExtractParameters(data=scenes, teachers=teachers, extract=settings), tmp_path / precision)
        assert ("in bf16 strays from fp32: smallest cosine" in " ".join(capsys.readouterr().err.split())) == said


def encode_texts(teacher: Teacher, texts: list[str], size: int) -> torch.Tensor:
    """Encode in batches of like length, as the extraction does, and put the rows back in order."""
    items = teacher.prepare(texts)
    order = sorted(range(len(items)), key=lambda row: teacher.length(items[row]))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    features = torch.cat([teacher.encode(teacher.collate([items[row] for row in batch])) for batch in batches])
    return features[np.argsort(order)]


def minilm_folder() -> Path:
    return packaged_file("minilm").parent


TEXTS = [
    "A dog.", "", " ", "🐕‍🦺 runs 🏖️", "two children play with a red ball on the grass", "ein großer Vogel",
    "a\x00b", "כלב רץ על החוף", "word " * 3000, "a man riding a wave on top of a surfboard", "cat",
    "the cat and the dog",
]  # fmt: skip


def assert_equals_library(folder: str, texts: list[str]) -> Teacher:
    teacher = load_teacher(f"sentence-transformers:{folder}", device="cpu", precision="fp32")
    library = SentenceTransformer(folder, device="cpu", local_files_only=True)
    expected = library.encode(texts, convert_to_tensor=True, batch_size=len(texts))
    assert not torch.allclose(expected[0], expected[4], atol=1e-3), "the model tells nothing apart"
    for size in (1, 2, 5, len(texts)):
        cosine = torch.nn.functional.cosine_similarity(encode_texts(teacher, texts, size), expected)
        assert cosine.min() > 1 - 1e-5, size
    return teacher


def test_minilm_s_texts_equal_the_library_s_whatever_the_batch() -> None:
    teacher = assert_equals_library(str(minilm_folder()), TEXTS)
    lengths = [teacher.length(item) for item in teacher.prepare(TEXTS)]
    assert lengths[:2] == [5, 2], "a dog . and the two special tokens; the special tokens alone"
    assert lengths[8] == 256, "cut where the model cuts"
    batch = teacher.collate(teacher.prepare(["A dog.", "two children play"]))
    assert batch["input_ids"].shape == (2, 5), "no longer than the longest"
    assert teacher.prepare([]) == []
    alone = teacher.preprocess("A dog.")
    assert alone.dtype == np.int32
    assert np.array_equal(alone, teacher.prepare(TEXTS)[0])


def save_small_model(kind: str, folder: Path, side: str, prompt: str | None = None, pooling: str = "mean") -> str:
    """A random model of sentence-transformers with a tokenizer of words, made on the spot."""
    words = sorted({word for text in TEXTS for word in text.lower().split()} | {"query:"})
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        mask_token="<mask>", padding_side=side, model_max_length=32,
    )  # fmt: skip
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1, "initializer_range": 1.0,
    }  # fmt: skip
    network = RobertaModel(RobertaConfig(**sizes)) if kind == "roberta" else MPNetModel(MPNetConfig(**sizes))
    backbone = folder / "backbone"
    network.save_pretrained(backbone)
    wrapped.save_pretrained(backbone)
    modules = [TransformerModule(str(backbone)), Pooling(16, pooling)]
    model = SentenceTransformer(modules=modules, device="cpu")
    if prompt:
        model.prompts, model.default_prompt_name = {"query": prompt}, "query"
    model.save(str(folder / "model"))
    return str(folder / "model")


@pytest.mark.parametrize(
    ("kind", "side", "prompt", "pooling"),
    [
        ("roberta", "right", None, "mean"),
        ("roberta", "left", None, "lasttoken"),
        ("mpnet", "right", None, "mean"),
        ("mpnet", "left", "query: ", "mean"),
    ],
)
def test_other_models_texts_equal_the_library_s(
    tmp_path: Path, kind: str, side: str, prompt: str | None, pooling: str
) -> None:
    folder = save_small_model(kind, tmp_path, side, prompt, pooling)
    texts = [text.lower() for text in TEXTS]
    teacher = assert_equals_library(folder, texts)
    batch = teacher.collate(teacher.prepare(["cat", "the cat and the dog"]))
    assert batch["input_ids"].shape[1] == 7 + bool(prompt)
    column = 0 if side == "left" else -1
    assert batch["input_ids"][0, column] == 1
    assert batch["attention_mask"][0, column] == 0


def test_a_prompt_changes_the_fingerprint(tmp_path: Path) -> None:
    fingerprints = set()
    for prompt in (None, "query: "):
        folder = save_small_model("mpnet", tmp_path, "right", prompt)
        fingerprints.add(load_teacher(f"sentence-transformers:{folder}", device="cpu").fingerprint)
    assert len(fingerprints) == 2


def test_a_fingerprint_covers_the_tokenizer_and_the_architecture(tmp_path: Path) -> None:
    """The weights stay as they are; so does what is said of the library's version or the place."""
    folder = Path(shutil.copytree(minilm_folder(), tmp_path / "one"))

    def loaded(**settings: Any) -> str:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return load_teacher("sentence-transformers:model", device="cpu", precision="fp32").fingerprint

    with contextlib.chdir(tmp_path):
        Path("model").symlink_to("one")
        first = loaded()
        assert loaded(transformers_version="9.9.9", architectures=["Other"], layer_norm_eps=1e-12) == first
        relu = loaded(hidden_act="relu")
        text = (folder / "tokenizer.json").read_text()
        assert '"lowercase":true' in text.replace(" ", "").replace("\n", "")
        changed = json.loads(text)
        changed["normalizer"]["lowercase"] = False
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        settings = folder / "tokenizer_config.json"
        if settings.exists():
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": False}))
        assert len({first, relu, loaded()}) == 3


def test_a_fingerprint_covers_an_open_clip_tokenizer() -> None:
    torch.manual_seed(0)
    tower = TextTransformer(context_length=8, vocab_size=49408, width=8, heads=1, layers=1, output_dim=4)
    found = {
        OpenClipTextTeacher(
            tower, SimpleTokenizer(context_length=8, clean=clean), "open-clip:x", torch.device("cpu"), "fp32"
        ).fingerprint
        for clean in ("lower", "whitespace", "lower")
    }
    assert len(found) == 2


def test_a_model_without_padded_tokens_takes_its_texts_as_they_are(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    torch.manual_seed(0)
    static = StaticEmbedding(tokenizer, embedding_weights=np.random.default_rng(0).normal(size=(30522, 8)))
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    texts = [text for text in TEXTS if text.strip()]
    teacher = assert_equals_library(str(tmp_path / "static"), texts)
    assert teacher.prepare(texts) == texts
    assert encode_backing_off(teacher, texts).shape == (len(texts), 8)


def save_timm(name: str, path: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, **changes).eval()
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), str(path))
    else:
        torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("name", "file"), [("test_vit", "w.safetensors"), ("test_resnet", "w.pth"), ("test_convnext", "w.pth")]
)
def test_timm_s_features_equal_the_library_s(tmp_path: Path, name: str, file: str) -> None:
    network = save_timm(name, tmp_path / file)
    network.reset_classifier(0)
    teacher = load_teacher(f"timm:{name}", str(tmp_path / file), device="cpu", precision="fp32")
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**settings)
    pictures = [picture((300, 200), 1), picture((50, 220), 2)]
    with torch.inference_mode():
        expected = network(torch.stack([transform(one) for one in pictures]))
    found = teacher.encode(teacher.collate(teacher.prepare(pictures)))
    assert found.shape == (2, teacher.dim)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[0], found[1])
    assert (TeacherCard.of(teacher).slug, teacher.modality) == (f"timm-{name}", "image")


def test_timm_loads_strictly_and_safely(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save_timm("test_vit", path)
    one = load_teacher("timm:test_vit", str(path), device="cpu")
    state = torch.load(path, weights_only=True)
    state["norm.bias"] += 1
    torch.save({"state_dict": state}, path)
    assert load_teacher("timm:test_vit", str(path), device="cpu").fingerprint != one.fingerprint
    expected = "the state dict of timm:test_vit, as safetensors or as a torch file that loads with weights_only=True"
    for broken in (
        {key: value for key, value in state.items() if key != "norm.bias"},
        {**state, "stranger": torch.zeros(1)},
        {**state, "norm.bias": Malicious()},
        {**state, "pos_embed": torch.zeros(1, 3, 64)},
    ):
        torch.save(broken, path)
        with refused(WeightsError, path=path, expected=expected):
            load_teacher("timm:test_vit", str(path), device="cpu")
    path.write_bytes(b"junk")
    with refused(WeightsError, path=path, expected=expected):
        load_teacher("timm:test_vit", str(path), device="cpu")


@pytest.fixture
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model in open_clip's list, and its random weights in `weights.pt`."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    (tmp_path / "tiny-last.json").write_text(
        json.dumps(config | {"text_cfg": {**config["text_cfg"], "no_causal_mask": True, "pool_type": "last"}})
    )
    open_clip.add_model_config(tmp_path)
    for name in ("tiny-clip", "tiny-last"):
        torch.manual_seed(0)
        model = open_clip.create_model(name, force_custom_text=name == "tiny-last", load_weights=False)
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    return str(tmp_path / "tiny-clip.pt")


def test_open_clip_s_towers_equal_the_library_s(small_clip: str) -> None:
    model, _, transform = open_clip.create_model_and_transforms("tiny-clip", pretrained=small_clip)
    tokenizer, pictures = open_clip.get_tokenizer("tiny-clip"), [picture((60, 40), seed) for seed in range(3)]
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([transform(one) for one in pictures]))
        texts = model.encode_text(tokenizer(TEXTS))
    image = load_teacher("open-clip:tiny-clip", small_clip, device="cpu", precision="fp32")
    torch.testing.assert_close(image.encode(image.collate(image.prepare(pictures))), images)
    text = load_teacher(f"open-clip:tiny-clip/{small_clip}", device="cpu", precision="fp32", modality="text")
    for size in (1, 3, len(TEXTS)):
        torch.testing.assert_close(encode_texts(text, TEXTS, size), texts, atol=1e-5, rtol=1e-4)
    lengths = [text.length(item) for item in text.prepare(TEXTS)]
    assert lengths[0] == 5, "a dog . and the two marks, not the whole context"
    assert lengths[8] == 77
    assert text.collate(text.prepare(["A dog.", "cat"])).shape == (2, 5)
    assert (image.dim, text.dim) == (16, 16)
    image, text = (load_teacher("open-clip:tiny-clip", small_clip, modality=m) for m in ("image", "text"))
    assert (TeacherCard.of(image).slug, TeacherCard.of(text).slug) == (
        "open-clip-tiny-clip-image",
        "open-clip-tiny-clip-text",
    )
    assert image.fingerprint != text.fingerprint


def test_a_text_and_an_image_are_one_query_in_the_space_of_one_model(
    small_clip: str, scenes_store: Store, tmp_path: Path
) -> None:
    """Ranked as the sums of both similarities are."""
    teachers = Teachers(
        image="open-clip:tiny-clip", image_weights=small_clip, text="open-clip:tiny-clip", text_weights=small_clip
    )
    small = small_scenes(train=20, val=0, test=0)
    extract(replace(small, teachers=teachers, extract=replace(small.extract, precision="fp32")), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    (tmp_path / "query.png").write_bytes(store.images[3])
    said = store.captions["text"][50].as_py()
    query = Query(text=said, image=tmp_path / "query.png", teacher="open-clip-tiny-clip-image")
    found = neighbours(tmp_path / "store", query, 20).found
    images, texts = (store.features(f"open-clip-tiny-clip-{name}") for name in ("image", "text"))
    vector = images.gather(np.array([3])) + texts.gather(np.array([50])).astype(np.float32)
    scores = (images.gather(np.arange(20)).astype(np.float32) @ vector[0]) / np.linalg.norm(vector)
    assert [one.similarity for one in found] == pytest.approx(np.sort(scores)[::-1], abs=2e-3)
    assert scores[found[0].row] == pytest.approx(scores.max(), abs=2e-3)
    captions = neighbours(tmp_path / "store", replace(query, teacher="open-clip-tiny-clip-text"), 3)
    assert captions.modality == "text"
    with pytest.raises(CusaError, match="hog-color has no tower for texts"):
        neighbours(scenes_store.root, replace(query, teacher=None), 3)


def test_an_open_clip_tower_that_reads_its_padding_gets_it(small_clip: str) -> None:
    path = small_clip.replace("tiny-clip.pt", "tiny-last.pt")
    model = open_clip.create_model("tiny-last", pretrained=path, force_custom_text=True).eval()
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer("tiny-clip")(TEXTS))
    teacher = load_teacher("open-clip:tiny-last", path, device="cpu", precision="fp32", modality="text")
    assert {teacher.length(item) for item in teacher.prepare(TEXTS)} == {77}
    torch.testing.assert_close(encode_texts(teacher, TEXTS, 4), expected, atol=1e-5, rtol=1e-4)


def test_an_open_clip_teacher_keeps_only_its_tower(small_clip: str) -> None:
    for modality, other in (("image", "token_embedding"), ("text", "conv1")):
        teacher = load_teacher("open-clip:tiny-clip", small_clip, device="cpu", modality=modality)
        held = [module for module in vars(teacher).values() if isinstance(module, torch.nn.Module)]
        assert [other in key for module in held for key in module.state_dict()].count(True) == 0


def test_open_clip_explains_what_it_cannot_load(small_clip: str, tmp_path: Path) -> None:
    state = torch.load(small_clip, weights_only=True)
    for broken in (
        {key: value for key, value in state.items() if key != "ln_final.bias"},
        {**state, "stranger": torch.zeros(1)},
        {**state, "ln_final.bias": Malicious()},
    ):
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(TeacherError, match=r"broken\.pt does not hold its weights\): "):
            load_teacher("open-clip:tiny-clip", str(tmp_path / "broken.pt"), device="cpu")
    (tmp_path / "broken.pt").write_bytes(b"junk")
    with pytest.raises(TeacherError, match=r"broken\.pt does not hold its weights\): "):
        load_teacher(f"open-clip:tiny-clip/{tmp_path / 'broken.pt'}", device="cpu")


class OnlySo(Teacher):
    """A teacher with memory for a few rows; its batch is nested."""

    modality = "text"

    def __init__(self, most: int, message: str = "CUDA out of memory. Tried to allocate 1 GiB.") -> None:
        self.most, self.sizes = most, list[int]()
        self.short: RuntimeError = torch.OutOfMemoryError(message)
        super().__init__(spec="x:y", dim=2, precision="fp32", device=torch.device("cpu"), identity=None)

    def preprocess(self, item: int) -> int:
        return item

    def collate(self, items: list[int]) -> dict[str, Any]:
        numbers = torch.tensor(items)
        return {"pair": (numbers, [numbers[:, None] * 2]), "names": [str(item) for item in items], "modality": "text"}

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        numbers, (doubled,) = batch["pair"]
        assert batch["names"] == [str(item) for item in numbers.tolist()]
        assert batch["modality"] == "text"
        self.sizes.append(len(numbers))
        if len(numbers) > self.most:
            raise self.short
        return torch.cat([numbers[:, None], doubled], dim=1)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 101])
@pytest.mark.parametrize("most", [1, 3, 40])
def test_backing_off_loses_no_row_and_keeps_the_order(rows: int, most: int) -> None:
    teacher = OnlySo(most)
    features = encode_backing_off(teacher, teacher.collate(list(range(rows))))
    assert features.tolist() == [[float(row), 2.0 * row] for row in range(rows)]
    assert teacher.backed_off == (rows > most)


def test_backing_off_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = OnlySo(10)
    for _ in range(3):
        encode_backing_off(teacher, teacher.collate(list(range(64))))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Out of memory:") == 1
    assert "x:y takes 8 of the 64 rows of a batch at once" in said
    assert "extract.text_batch: 8" in said


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
    ids=["cublas", "cudnn", "driver"],
)
def test_want_of_memory_is_known_in_the_words_of_each_library(message: str) -> None:
    teacher = OnlySo(3)
    teacher.short = RuntimeError(message)
    assert len(encode_backing_off(teacher, teacher.collate(list(range(8))))) == 8
    assert largest_batch(teacher, [1], 64) == 1


def test_a_single_row_that_does_not_fit_is_explained() -> None:
    teacher = OnlySo(0)
    with pytest.raises(TeacherError, match=r"x:y runs out of memory on a single text: CUDA out of memory\."):
        encode_backing_off(teacher, teacher.collate([5, 6, 7]))


def test_other_faults_are_no_want_of_memory() -> None:
    class Broken(OnlySo):
        def forward(self, batch: Any) -> torch.Tensor:
            self.sizes.append(0)
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    teacher = Broken(1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        encode_backing_off(teacher, teacher.collate([1, 2]))
    assert len(teacher.sizes) == 1


def test_a_processor_s_want_of_memory_is_one_too() -> None:
    class Small(OnlySo):
        def forward(self, batch: Any) -> torch.Tensor:
            if len(batch["pair"][0]) > 2:
                torch.empty(2**60, dtype=torch.uint8)
            return super().forward(batch)

    teacher = Small(100)
    assert len(encode_backing_off(teacher, teacher.collate([1, 2, 3, 4, 5]))) == 5
    assert max(teacher.sizes) == 2


def test_the_largest_batch_is_fixed_without_a_gpu_and_else_found() -> None:
    teacher = OnlySo(100)
    fixed = {"image": 64, "text": 128}[teacher.modality]
    assert batch_size(teacher, Extract()) == fixed
    assert batch_size(teacher, Extract(image_batch=7, text_batch=7)) == 7
    assert teacher.sizes == [], "nothing is tried on a processor"
    for most, limit, found in ((100, 1024, 32), (100, 16, 16), (1, 64, 1), (10_000, 1024, 1024)):
        teacher.most = most
        assert largest_batch(teacher, [1, 2], limit) == found, "twice as much fits too"


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
    assert (teacher.modality, teacher.dim, TeacherCard.of(teacher).slug) == ("image", 3, "tiny_teachers-mean_colour")
    assert teacher.fingerprint != load_teacher("tiny_teachers:mean_colour", "other", device="cpu").fingerprint


def test_the_teacher_of_the_docs_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/plug-ins.md, with a network of two blocks in the place of DINOv2's."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "plug-ins.md").read_text()
    code = text.partition("```python\n# my_models.py")[2].partition("```")[0]
    code = "#" + code.replace("vit_small_patch14_dinov2", "test_vit").replace("dim=384", "dim=64")
    (tmp_path / "my_models.py").write_text(code)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load_teacher("my_models:dino", str(tmp_path / "weights.pth"), "cpu")
    batch = teacher.collate([teacher.preprocess(Image.new("RGB", (200, 180), color)) for color in ("red", "blue")])
    features = teacher.encode(batch)
    assert features.shape == (2, teacher.dim) == (2, 64)
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "unicorn:ViT-B/32",
            "No teacher is called 'unicorn:ViT-B/32'. Known: hog-color; minilm; mpnet; ",
        ),
        ("unicom:ViT-H/14", "found 'unicom:ViT-H/14', expected unicom:ViT-B/32"),
        ("no_such_module:factory", "the module no_such_module cannot be imported"),
        ("tiny_teachers:nothing", "has nothing callable named 'nothing'"),
        ("tiny_teachers:not_a_teacher", "returned a str, expected a models.teachers.Teacher"),
        ("sentence-transformers:/nowhere/model", "could not be loaded"),
        ("timm:resnet5O", "timm has no model 'resnet5O'. Nearest: resnet50"),
        ("timm:resnet50.nothing_in1k", "timm has no weights 'resnet50.nothing_in1k'. There are: resnet50."),
        ("open-clip:ViT-B-23/openai", "open_clip has no model 'ViT-B-23'. Nearest: ViT-B-"),
        ("open-clip:ViT-B-32", "open-clip:ViT-B-32 has no weights. Name those of open_clip: open-clip:ViT-B-32/"),
        ("open-clip:ViT-B-32/laion3b", "open_clip has no weights 'laion3b' of ViT-B-32. There are: openai, "),
        ("open-clip:ViT-B-32/./absent.pt", "The weights ./absent.pt of open-clip:ViT-B-32/./absent.pt do not exist."),
    ],
    ids=[
        "family",
        "unicom-model",
        "module",
        "factory",
        "no-teacher",
        "sentence-folder",
        "timm-model",
        "timm-weights",
        "open-clip-model",
        "open-clip-no-weights",
        "open-clip-tag",
        "open-clip-absent-file",
    ],
)
def test_unknown_teachers_are_explained(spec: str, message: str) -> None:
    with pytest.raises((TeacherError, WeightsError)) as caught:
        load_teacher(spec, device="cpu")
    assert message in caught.value.message
