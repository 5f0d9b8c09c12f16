"""TEMP."""

from typing import Any


def encode_backing_off(teacher: Any, batch: Any) -> Any:
    return teacher.encode(batch)


def batch_size(teacher: Any, settings: Any) -> int:
    value = settings.image_batch if teacher.modality == "image" else settings.text_batch
    return value if value != "auto" else (64 if teacher.modality == "image" else 128)
