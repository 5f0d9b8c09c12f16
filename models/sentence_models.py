"""sentence-transformers models by name, for teachers and for students' towers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from models.loading import shortened
from models.packaged_weights import packaged_file
from stores.errors import WeightsError

PACKAGED_MODELS: Final = ("minilm", "mpnet")
"""The text encoders among the packaged weights: all-MiniLM-L6-v2 and all-mpnet-base-v2."""


def sentence_model(name: str, device: torch.device) -> SentenceTransformer:
    """Return the model `name`: one of `PACKAGED_MODELS`, a folder, or a name on the hub of sentence-transformers.

    A plain encoder of transformers works too: its tokens are then averaged.

    Raises:
        WeightsError: it cannot be loaded.
    """
    place = str(packaged_file(name).parent) if name in PACKAGED_MODELS else name
    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            place, device=str(device), trust_remote_code=False, local_files_only=Path(place).is_dir()
        ).eval()
    except Exception as error:  # its libraries have no common base for what an absent or broken model raises
        raise WeightsError(
            f"The sentence-transformers model {name!r} could not be loaded: {shortened(error)} "
            f"Name a model of its hub (this machine must reach it once) or a folder that holds one."
        ) from None
