"""Reranking by an X2-VLM of base size, random weights, against its plain forward, a pair at a time.

The issue's 1,000 queries would take tens of minutes on a processor: here are fewer, each with as many candidates. The
images are encoded beforehand on both sides; the plain forward projects their tokens again for each pair.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.large_batch import kibibytes
from benchmarks.measure import Result, accelerator_of, in_turn
from models.encoded import Encoded
from models.inputs import Padded
from models.x2vlm import X2VLM
from models.x2vlm_files import load_x2vlm
from train.evaluation.reranking import reranked
from train.evaluation.similarities import CosineSimilarities

PIXELS, QUERIES, K, PLAIN = 224, 4, 64, 16
BOUND, CLOSE, MEMORY = 0.25, 1e-4, 2**30
"""Of the ratio of seconds per pair, of the scores' difference, and of memory beyond the weights and the tokens."""


class Reranking:
    """Images, texts of 8 to 16 tokens, and both ways to score them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student: X2VLM = load_x2vlm(f"base@{PIXELS}").eval()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1000, 30_000, (K, 16), generator=generator)
        mask = torch.arange(16) < torch.randint(8, 17, (K, 1), generator=generator)
        pixels = torch.randn(QUERIES, 3, PIXELS, PIXELS, generator=generator)
        with torch.inference_mode():
            self.images = self.student.encode("image", pixels)
            self.texts = self.student.encode("text", Padded(tokens * mask, mask))

    def ours(self, batch_size: int = 64) -> np.ndarray:
        """Return the scores of every image with every text: (QUERIES, K)."""
        first = CosineSimilarities(self.images.vector, self.texts.vector)
        both = self.images, self.texts
        with tempfile.TemporaryDirectory() as folder:
            accelerator = accelerator_of(torch.device("cpu"))
            found = reranked(first, self.student, both, K, "replace", batch_size, accelerator, Path(folder))
        scores = np.empty((QUERIES, K), np.float32)
        np.put_along_axis(scores, found.texts_of_images.ids, found.texts_of_images.scores, axis=1)
        return scores

    @torch.inference_mode()
    def plain(self) -> Tensor:
        """Return the scores of the first image with some texts, by transformers' layers, a pair at a time: (PLAIN,)."""
        return torch.stack([self._pair(self.images.take(slice(0, 1)), text) for text in range(PLAIN)])

    def _pair(self, image: Encoded, text: int) -> Tensor:
        words = self.texts.parts[text : text + 1, : int(self.texts.mask[text].sum())]
        seen = torch.zeros(1, 1, 1, words.shape[1])
        hidden = self.student.fusion_encoder(words, attention_mask=seen, encoder_hidden_states=image.parts)
        return self.student.itm_head(hidden.last_hidden_state[:, 0])[0, 1]


def benchmark() -> list[Result]:
    """Measure seconds per pair beside the plain forward, and peak memory in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        extra = pool.apply(_peak)
    given = Reranking()
    ours, plain, _ = in_turn(given.ours, given.plain, 1)
    difference = float(np.abs(given.ours()[0, :PLAIN] - given.plain().numpy()).max())
    each, yardstick = ours / (QUERIES * K), plain / PLAIN
    return [
        Result(
            name=f"rerank {K} texts of each image by X2-VLM base at {PIXELS} pixels, a pair, against its plain forward "
            f"(scores differ by at most {difference:.1e}, bound {CLOSE:.0e})",
            ours=each * 1000,
            yardstick=yardstick * 1000,
            unit="ms",
            ratio=each / yardstick,
            bound=f"≤ {BOUND}",
            kept=each / yardstick <= BOUND and difference <= CLOSE,
        ),
        Result(
            name="extra memory of that at its peak, eval.rerank.batch_size 64",
            ours=extra / 2**20,
            yardstick=MEMORY / 2**20,
            unit="MiB",
            ratio=extra / MEMORY,
            bound="≤ 1",
            kept=extra <= MEMORY,
        ),
    ]


def _peak() -> int:
    """Return the bytes that scoring takes at its peak beyond the model and what it is given."""
    given = Reranking()
    before = kibibytes("/proc/self/status", "VmRSS:") * 1024
    given.ours()
    return max(0, kibibytes("/proc/self/status", "VmHWM:") * 1024 - before)
