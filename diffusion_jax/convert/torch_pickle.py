"""State dicts of torch.save, read with NumPy alone.

A pickle can run any code, so only the names that tensors in dicts need are allowed, each a function
of this file.  Used for the feature networks of evaluation and for embeddings of web interfaces;
models' weights are safetensors.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Tensor(NamedTuple):
    storage: tuple[str, str]  # (dtype name, key)
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """name -> array of a ``torch.save``d state dict, old (legacy) or new (zip) format.

    Raises:
        ValueError: if it is not such a file, or contains anything but tensors.
    """
    tree = read_tree(path)
    if not isinstance(tree, dict) or not all(isinstance(x, np.ndarray) for x in tree.values()):
        raise _odd(path, "it holds more than tensors")
    return {str(name): array for name, array in tree.items()}


def read_tree(path: str | os.PathLike) -> Any:
    """Dicts, lists, texts, numbers and arrays of a ``torch.save``d file.

    Memory and time are those of the file's size.

    Raises:
        ValueError: if it is not such a file, or asks for anything that is no tensor.
    """
    # In memory, where a read gives what is there; of a file it makes room for what is asked first.
    file = io.BytesIO(Path(path).read_bytes())
    try:
        tree, storages = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        return _filled(tree, storages)
    except Exception as error:  # a damaged pickle may raise anything
        raise _odd(path, error) from None


def _odd(path: str | os.PathLike, fault: Any) -> ValueError:
    return ValueError(
        f"{path} is not a plain PyTorch state dict of tensors ({fault}); "
        "save it again with torch.save(model.state_dict()) or as safetensors"
    )


def _filled(tree: Any, storages: dict[tuple[str, str], np.ndarray]) -> Any:
    """The tree with arrays in place of tensors."""
    if isinstance(tree, _Tensor):
        return _array(tree, storages[tree.storage])
    if isinstance(tree, dict):
        return {k: _filled(v, storages) for k, v in tree.items()}
    return tree


# The library's own in C makes room for any number that a file says; this for what it holds.
class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        return pid[1], str(pid[2])


def _read_zip(file: io.BytesIO):
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise pickle.UnpicklingError("the archive is compressed, which PyTorch's are not")
        index = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if index is None:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        tree = _Unpickler(io.BytesIO(archive.read(index))).load()
        folder = index.removesuffix("data.pkl") + "data/"
        used = set(_storages(tree))
        return tree, {s: np.frombuffer(archive.read(folder + s[1]), _DTYPES[s[0]]) for s in used}


def _read_legacy(file: io.BytesIO):
    file.seek(0)
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("the first number is not PyTorch's")
    for _ in range(2):  # protocol version, machine facts
        _Unpickler(file).load()
    tree = _Unpickler(file).load()
    kinds = {storage[1]: storage[0] for storage in _storages(tree)}
    storages = {}
    for key in map(str, _Unpickler(file).load()):
        (count,) = struct.unpack("<q", file.read(8))
        dtype = np.dtype(_DTYPES[kinds[key]])
        storages[kinds[key], key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return tree, storages


def _storages(tree: Any) -> list[tuple[str, str]]:
    if isinstance(tree, _Tensor):
        return [tree.storage]
    return [s for v in tree.values() for s in _storages(v)] if isinstance(tree, dict) else []


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    # as_strided checks nothing: a file with wrong sizes would expose other memory.
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
    )
    negative = min(tensor.offset, *tensor.size, *tensor.stride, 0) < 0
    beyond = last >= len(storage) or math.prod(tensor.size) > len(storage)
    if negative or (0 not in tensor.size and beyond):
        raise pickle.UnpicklingError("a tensor reaches beyond its data")
    flat = storage[tensor.offset :]
    strides = [step * flat.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat, tensor.size, strides).copy()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _parameter(tensor: Any, *rest: Any) -> Any:
    return tensor


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
}
