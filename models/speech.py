"""Speech encoders of a folder of transformers: Wav2Vec 2.0 (arXiv 2006.11477), HuBERT, WavLM and their kin.

A recording becomes the mean over the frames of the last layer. Each goes through by itself: some of these models were
trained without a mask, and would give another vector in a padded batch.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from models.loading import shortened, weights_digest
from stores.errors import WeightsError
from stores.hardware import resolve_device

KINDS: Final = ("data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
"""Those that take samples as they are."""
RATES: Final = (4_000, 192_000)
"""Of the recordings that are encoded, in Hz."""
SECONDS: Final = (0.1, 60.0)
"""How long they are: the least gives every kind a frame, and attention grows with the square of the most."""
EXPECTED: Final = "a folder with config.json, preprocessor_config.json and model.safetensors"
_LOCAL: Final = {"local_files_only": True, "trust_remote_code": False}
_UNUSED: Final = {"masked_spec_embed"}
"""What only training needs, and some published weights lack."""


class SpeechEncoder:
    """A model of a folder that transformers saved: config.json, preprocessor_config.json and model.safetensors."""

    def __init__(self, folder: str) -> None:
        """Load the model.

        Raises:
            WeightsError: it cannot be loaded, is of another kind, or lacks weights.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, logging  # here: they take seconds to load

        where = Path(folder)
        fault = partial(WeightsError, path=where, expected=EXPECTED, advice="Set data.speech to such a folder.")
        if not folder or not where.is_dir():
            raise fault("no such folder")
        logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(where, **_LOCAL)
            if config.model_type not in KINDS or getattr(config, "add_adapter", False):
                kinds = f"{', '.join(KINDS)}, without an adapter"
                raise fault("a model of another kind", found=config.model_type, expected=kinds)
            self._prepare = AutoFeatureExtractor.from_pretrained(where, **_LOCAL)
            model, found = AutoModel.from_pretrained(
                where, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **_LOCAL
            )
        except WeightsError:
            raise
        except Exception as error:  # its libraries have no common base for what an absent or broken model raises
            raise fault(f"could not be loaded ({shortened(error)})") from None
        if missing := sorted(set(found["missing_keys"]) - _UNUSED):
            raise fault(f"the weights lack {len(missing)} that the model has, such as {missing[0]}")
        self._device = resolve_device("auto")
        self._model = model.eval().to(self._device)
        self.dim = int(model.config.hidden_size)
        self.fingerprint = f"mean over frames 1, {self._prepare.to_json_string()}, {weights_digest(model)}"

    def __call__(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Encode a recording, (samples,) of −1 to 1 at `rate` Hz: (D,); not finite where it is not one of speech."""
        if not RATES[0] <= rate <= RATES[1] or not SECONDS[0] <= len(samples) / rate <= SECONDS[1]:
            return np.full(self.dim, np.nan, np.float32)
        wanted = int(self._prepare.sampling_rate)
        shared = gcd(wanted, rate)
        heard = resample_poly(samples, wanted // shared, rate // shared) if rate != wanted else samples
        with torch.inference_mode():
            values = self._prepare(heard, sampling_rate=wanted, return_tensors="pt").input_values
            frames = self._model(values.to(self._device, torch.float32)).last_hidden_state[0]
        mean: NDArray[np.float32] = frames.mean(dim=0).cpu().numpy()
        return mean
