"""The ground floor: what both stages agree on — layout, formats, parameters, errors.

`stores.index.Index` is imported from there, so that who searches nothing need not load faiss.
"""

from stores.errors import (
    CusaError,
    ParameterError,
    SourceError,
    StoreError,
    StudentError,
    TeacherError,
    TrainingError,
)
from stores.features import Features
from stores.manifest import Manifest, Shard
from stores.modality import Modality
from stores.parameter_loading import load_parameters
from stores.parameters import ExtractParameters, TrainParameters
from stores.store import Store

__all__ = [
    "CusaError",
    "ExtractParameters",
    "Features",
    "Manifest",
    "Modality",
    "ParameterError",
    "Shard",
    "SourceError",
    "Store",
    "StoreError",
    "StudentError",
    "TeacherError",
    "TrainParameters",
    "TrainingError",
    "load_parameters",
]
