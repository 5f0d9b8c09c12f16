"""Flickr8K with its spoken captions (FACC, Harwath & Glass, 2015), as both are published, in one folder.

```
Flickr8k_text/   Flickr8k.token.txt, Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt, Flickr_8k.testImages.txt
Flicker8k_Dataset/<image>.jpg                     (the publishers' spelling)
flickr_audio/    wav2capt.txt, wavs/<image>_<n>.wav
```

Texts and images may lie in the folder itself as well. A caption's recording is found by wav2capt.txt, and encoded
where `data.speech` names an encoder; vectors that are there already are imported by key, `<image>.jpg#<n>`.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.files import Folder, SourceFile, asked
from pipeline.sources.image_files import ImageFile
from pipeline.sources.listed import ListedSource, by_label, columns, required
from pipeline.sources.records import BadRecord, GivenFeatures, Record
from pipeline.sources.unreadable import readable
from stores.errors import SourceError
from stores.modality import Level
from stores.plugins import made_by_factory

NAME: Final = "Flickr8K with spoken captions"
RECORDINGS: Final = ("wav2capt.txt", "flickr_audio/wav2capt.txt")
_SPLITS: Final = {"train": "trainImages", "val": "devImages", "test": "testImages"}
_IMAGES: Final = ("Flicker8k_Dataset", "Flickr8k_Dataset", "images")
WIDEST: Final = 4
"""Bytes of a sample."""
LARGEST: Final = 64 << 20
"""Bytes of a recording; FACC's are of some seconds."""
Encoder = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""(samples,) of −1 to 1 and their rate in Hz to (D,); `dim` is D, `fingerprint` names what it computes. What is not a
number is an absent row."""


def open_facc(folder: Folder, encoder: str | None) -> ListedSource:
    """Open the data set in its folder.

    `encoder` is `speech:<folder>` (`models.speech`), `package.module:factory` of an `Encoder`, or None.

    Raises:
        SourceError: a list is absent, or the encoder cannot be had.
        WeightsError: the encoder's folder has no model that can be loaded.
    """

    def text(name: str) -> SourceFile:
        return required(folder, [f"Flickr8k_text/{name}", name], NAME)

    said, spoken = text("Flickr8k.token.txt"), required(folder, RECORDINGS, NAME)
    lists = {split: text(f"Flickr_8k.{name}.txt") for split, name in _SPLITS.items()}
    captions: dict[str, dict[str, str]] = {}
    for key, caption in columns(said, 2):
        image, _, number = key.rpartition("#")
        captions.setdefault(image, {})[number] = caption
    with readable(folder):
        images = next((name for name in _IMAGES if asked(folder.system.isdir, folder.path(name))), "")
    place = Folder(folder.system, folder.path(images)) if images else folder
    records: dict[str, list[Record | BadRecord]] = {
        split: [
            Record(source_id=name, captions=tuple(captions.get(name, {}).values()), image=ImageFile(place, name))
            for (name,) in columns(file, 1)
        ]
        for split, file in lists.items()
    }
    features: dict[str, GivenFeatures] = {}
    if encoder is not None:
        numbers = {name: list(found) for name, found in captions.items()}
        features["speech"] = SpokenCaptions(spoken, numbers, encoder)
    return ListedSource("facc", by_label(said, spoken, *lists.values()), records, features)


class SpokenCaptions:
    """The recording of each caption, encoded; one that is absent or cannot be read is absent."""

    level: Level = "caption"
    unit = False

    def __init__(self, listing: SourceFile, captions: dict[str, list[str]], spec: str) -> None:
        """Load the encoder; `captions` are the numbers of each image's captions, in their order.

        Raises:
            SourceError: there is no such encoder.
            WeightsError: the folder of one has no model that can be loaded.
        """
        family, _, folder = spec.partition(":")
        if family == "speech":
            from models.speech import SpeechEncoder  # here: it loads torch, which no other source needs

            encoder: Any = SpeechEncoder(folder)
        else:
            encoder = made_by_factory(spec, SourceError)
        if missing := [name for name in ("dim", "fingerprint") if not hasattr(encoder, name)]:
            raise SourceError(f"data.speech: the encoder of {spec} lacks {' and '.join(missing)} (docs/modalities.md).")
        self.shape: tuple[int, ...] = (int(encoder.dim),)
        self._encoder, self._spec, self._listing, self._captions = encoder, spec, listing, captions
        self._recordings = {f"{image}{number}": wav for wav, image, number in columns(listing, 3)}

    def identity(self) -> Any:
        """Name the encoder, and the list of the recordings; a recording that is replaced is not seen."""
        return [self._spec, str(self._encoder.fingerprint), self._listing.digest()]

    def of(self, name: str) -> NDArray[np.float32] | None:
        """Return the rows of an image's captions: (captions, D)."""
        rows = np.full((len(self._captions[name]), *self.shape), np.nan, np.float32)
        for row, number in enumerate(self._captions[name]):
            wav = self._recordings.get(f"{name}#{number}")
            if wav is not None and (heard := self._heard(wav)) is not None:
                rows[row] = self._encoder(*heard)
        return rows

    def _heard(self, name: str) -> tuple[NDArray[np.float32], int] | None:
        """Return the samples of a recording, and their rate; None where it is empty, cut short or no PCM."""
        folder = self._listing.folder
        path = folder.path(f"wavs/{name}")
        try:
            if "/" in name or int(asked(folder.system.info, path)["size"] or LARGEST) >= LARGEST:
                return None
            with wave.open(io.BytesIO(asked(folder.system.cat_file, path))) as recording:
                form = recording.getparams()
                if form.sampwidth > WIDEST:
                    return None
                data = recording.readframes(form.nframes)
            if not data or len(data) != form.nframes * form.nchannels * form.sampwidth:
                return None
            return _levels(data, form.sampwidth).reshape(-1, form.nchannels).mean(axis=1), form.framerate
        except (OSError, EOFError, wave.Error):
            return None


def _levels(data: bytes, width: int) -> NDArray[np.float32]:
    """Return PCM of `width` bytes a sample as levels of −1 to 1; of one byte it has no sign."""
    wide = np.zeros((len(data) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        wide[:, 3] ^= 0x80
    return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
