"""The students `sgraf:SGR` and `sgraf:SAF`: new, or from a file of the authors' or of ours.

Shapes: N images, R regions of P numbers, M captions, L tokens, d embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoded import Encoded
from models.export import files_of
from models.inputs import Input, Stored, Tensors, Tokens
from models.sgraf.encoders import RegionEncoder, WordEncoder
from models.sgraf.published import Sizes, made_of, read_published
from models.sgraf.similarity import HEADS, SimilarityVectors
from models.sgraf.vocabulary import FILE, LONGEST, PAD, Vocabulary, vocabulary_beside
from models.students import Parts
from stores import Store, parameters
from stores.digests import file_digest
from stores.errors import StudentError


class SgrafStudent(nn.Module):
    """SGR or SAF: regions that a store holds, and words; a pair is scored by its similarity vectors.

    `vector` is the global one of an image or a caption, `parts` the regions and the words.
    """

    def __init__(self, kind: str, sizes: Sizes, regions: str, vocabulary: Vocabulary | None) -> None:
        """Make one with random weights; `regions` names the stored features. Without a vocabulary it takes numbers."""
        super().__init__()
        self.metadata: Mapping[str, Any] = {}
        """What the authors' file says of which it was loaded, beside the weights."""
        self.kind, self.embed_dim, self.regions = kind, sizes.dim, sizes.regions
        self.vocabulary = vocabulary
        self.img_enc = RegionEncoder(sizes.region, sizes.dim)
        self.txt_enc = WordEncoder(sizes.words, sizes.word, sizes.dim)
        self.sim_enc = SimilarityVectors(kind, sizes.regions, sizes.dim, sizes.similarity)
        tokenizer = _no_vocabulary if vocabulary is None else vocabulary.tokens
        self.inputs: dict[str, Input] = {"image": Stored(regions), "text": Tokens(tokenizer, PAD)}

    @property
    def scorer(self) -> SimilarityVectors:
        """What compares images and captions."""
        return self.sim_enc

    @property
    def towers(self) -> dict[str, Parts]:
        """What encodes images, and captions; what compares them learns in any case."""
        return {
            "image": [self.img_enc, self.sim_enc.v_global_w],
            "text": [self.txt_enc, self.sim_enc.t_global_w],
        }

    @staticmethod
    def uni_head(dim: int) -> nn.Module:
        """Return what takes global vectors to uni-modal tasks: one linear layer (CUSA, 4.1), which begins as none."""
        layer = nn.Linear(dim, dim)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def encode(self, modality: str, tensors: Tensors) -> Encoded:
        """Encode (N, R, P) regions, or the (M, L) numbers and mask of captions."""
        if isinstance(tensors, Tensor):
            if tensors.shape[1] != self.regions:
                raise StudentError("regions of an image", found=tensors.shape[1], expected=self.regions)
            regions = self.img_enc(tensors)
            return Encoded(self.sim_enc.v_global_w(regions), parts=regions)
        tokens, mask = tensors[0], tensors[1].bool()
        words = self.txt_enc(tokens, mask.sum(dim=1).cpu())
        return Encoded(self.sim_enc.t_global_w(words, mask), parts=words, mask=mask)

    def set_grad_checkpointing(self) -> None:
        """Score pairs again in the backward pass, block by block: they take by far the most memory."""
        self.sim_enc.recomputing = True


@files_of.register
def _files(student: SgrafStudent) -> dict[str, bytes]:
    vocabulary = student.vocabulary
    return {} if vocabulary is None else {FILE: vocabulary.file or vocabulary.json.encode()}


def with_kept_vocabulary(settings: parameters.Sgraf, folder: Path) -> parameters.Sgraf:
    """Return the settings with the vocabulary that a run keeps in its folder, where it does."""
    kept = folder / FILE
    return replace(settings, vocabulary=str(kept)) if kept.is_file() else settings


def load_sgraf(name: str, settings: parameters.Sgraf) -> SgrafStudent:
    """Return the student of `SGR` or `SAF`, with the weights of a file where the name goes on with /<file>.

    Raises:
        StudentError: there is no such student, or its vocabulary is missing or another model's.
        WeightsError: the file cannot be used.
    """
    kind, _, file = name.partition("/")
    if kind not in HEADS:
        raise StudentError(found=f"sgraf:{name}", expected="sgraf:SGR or sgraf:SAF, with /<file> for its weights")
    if file:
        return _loaded(kind, Path(file), settings)
    if settings.vocabulary is None:
        advice = "Make one of a store's captions: cusa-store vocabulary --out vocabulary.json."
        raise StudentError("a new sgraf student needs a vocabulary", where="student.sgraf.vocabulary", advice=advice)
    vocabulary = _vocabulary(Path(settings.vocabulary), settings)
    shape = {} if settings.shape is None else dict(zip(("regions", "region"), settings.shape, strict=True))
    sizes = Sizes(words=len(vocabulary), word=settings.word, dim=settings.dim, similarity=settings.similarity, **shape)
    return SgrafStudent(kind, sizes, settings.regions, vocabulary)


def _loaded(kind: str, path: Path, settings: parameters.Sgraf) -> SgrafStudent:
    published = read_published(path, kind)
    sizes = published.sizes
    if settings.shape not in (None, shape := [sizes.regions, sizes.region]):
        raise StudentError("regions", path=path, found=shape, expected=f"{settings.shape}, as student.sgraf says")
    place = Path(settings.vocabulary) if settings.vocabulary else vocabulary_beside(path, published.data)
    vocabulary = None if place is None else _vocabulary(place, settings)
    if vocabulary is not None and len(vocabulary) != sizes.words:
        raise StudentError(
            "the vocabulary is another model's",
            path=place or "",
            found=f"{len(vocabulary)} words",
            expected=f"{sizes.words}, as {path} embeds",
            advice="Name the one that the model was trained with: student.sgraf.vocabulary.",
        )
    student = made_of(published, lambda: SgrafStudent(kind, sizes, settings.regions, vocabulary), path)
    student.metadata = published.metadata
    return student


def with_regions(settings: parameters.Sgraf, store: Store) -> parameters.Sgraf:
    """Return the settings with what the store says of the regions, and which vocabulary it is.

    Raises:
        StoreError: the store has no such features.
        StudentError: they are no regions, or of another shape than the settings say.
    """
    found = store.features(settings.regions)
    shape = list(found.shape)
    if found.level != "sample" or len(shape) != 2 or (settings.shape or shape) != shape:
        raise StudentError(
            f"the features {settings.regions}",
            where="student.sgraf.regions",
            found=f"{' × '.join(map(str, shape))} for each {found.level}",
            expected=f"{' × '.join(map(str, settings.shape or ('regions', 'numbers')))} for each sample",
            advice="Import regions (docs/features.md), or extract a grid: --teacher grid:<timm model>@6x6.",
        )
    known = settings.vocabulary is not None and Path(settings.vocabulary).is_file()
    digest = file_digest(Path(settings.vocabulary or "")) if known else settings.vocabulary_sha256
    return replace(settings, shape=shape, vocabulary_sha256=settings.vocabulary_sha256 or digest)


def _vocabulary(path: Path, settings: parameters.Sgraf) -> Vocabulary:
    vocabulary = Vocabulary.read(path)
    expected = settings.vocabulary_sha256
    if expected is not None and (found := file_digest(path)) != expected:
        advice = "Its words have other numbers than the model was trained with; put the former file back."
        raise StudentError("sha256", path=path, found=found, expected=expected, advice=advice)
    return vocabulary


def _no_vocabulary(texts: list[str]) -> Tensor:
    if texts == [""]:
        return torch.zeros(1, LONGEST, dtype=torch.int64)  # how long texts may be is asked for at once
    advice = "Put it beside the file, as <name>_vocab.json, or name it: student.sgraf.vocabulary."
    raise StudentError("the model's vocabulary is not known, which captions need", advice=advice)
