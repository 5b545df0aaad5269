"""State dicts of torch.save, read with NumPy alone.

A pickle can run any code, so only the three names that a plain state dict needs are allowed.
Used for the feature networks of evaluation; models' weights are safetensors.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
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
    try:
        tensors, storages = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        return {str(name): _array(tensor, storages) for name, tensor in tensors.items()}
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path} is not a plain PyTorch state dict of tensors ({error}); "
            "save it again with torch.save(model.state_dict()) or as safetensors"
        ) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *rest: _Tensor(
                storage, offset, size, stride
            )
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        return pid[1], str(pid[2])


def _read_zip(path):
    with zipfile.ZipFile(path) as archive:
        index = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if index is None:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        tensors = _Unpickler(io.BytesIO(archive.read(index))).load()
        folder = index.removesuffix("data.pkl") + "data/"
        used = {tensor.storage for tensor in tensors.values()}
        return tensors, {s: np.frombuffer(archive.read(folder + s[1]), _DTYPES[s[0]]) for s in used}


def _read_legacy(path):
    with open(path, "rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("the first number is not PyTorch's")
        for _ in range(2):  # protocol version, machine facts
            _Unpickler(file).load()
        tensors = _Unpickler(file).load()
        kinds = {tensor.storage[1]: tensor.storage[0] for tensor in tensors.values()}
        storages = {}
        for key in map(str, _Unpickler(file).load()):
            (count,) = struct.unpack("<q", file.read(8))
            dtype = np.dtype(_DTYPES[kinds[key]])
            storages[kinds[key], key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        return tensors, storages


def _array(tensor: _Tensor, storages: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
    storage = storages[tensor.storage]
    # as_strided checks nothing: a file with wrong sizes would expose other memory.
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
    )
    negative = min(tensor.offset, *tensor.size, *tensor.stride, 0) < 0
    if negative or (0 not in tensor.size and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its data")
    flat = storage[tensor.offset :]
    strides = [step * flat.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat, tensor.size, strides).copy()
