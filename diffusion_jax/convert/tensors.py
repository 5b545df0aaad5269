"""Reading and writing of safetensors files, which cannot run code.

The format: 8 bytes, the length n of the header; n bytes of JSON, {name: {"dtype", "shape",
"data_offsets": [start, end]}, "__metadata__": {str: str}}; then the data, which the tensors cover
without gap or overlap.  All entries of a header are checked before its data is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.convert.mapped import forget
from diffusion_jax.files import whole

_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
"""First bytes of a bare pickle, and of the zip that torch.save writes."""

_LONGEST_HEADER = 100_000_000
"""Largest header in bytes, by the format's definition."""


class Spec(NamedTuple):
    """A header's entry for a tensor.

    Attributes:
        dtype: dtype of its elements.
        shape: its shape.
        start: first byte, from the end of the header.
        end: byte after the last.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a .safetensors file, by name.

    The arrays are read-only views of the file, mapped into memory: a tensor's bytes are read when
    they are first used, and there is no second copy.  The file must not be changed in place while
    they are in use; replacing it (``write_safetensors`` does) is safe.

    Args:
        path: the file.

    Returns:
        Name -> array in the file's dtype (bfloat16 and float8 of ml_dtypes), in the file's order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is a pickle (such as .bin, .pt or .ckpt), or damaged.
    """
    path = Path(path)
    specs, data_start = read_header(path)
    if not any(spec.end for spec in specs.values()):
        return {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}
    data = np.memmap(path, np.uint8, "r", offset=data_start)
    return {
        name: np.frombuffer(data[s.start : s.end], s.dtype).reshape(s.shape)
        for name, s in specs.items()
    }


def read_header(path: str | Path) -> tuple[dict[str, Spec], int]:
    """The header of a .safetensors file, checked against the file's length.

    Args:
        path: the file.

    Returns:
        Name -> Spec, in order of their bytes, and the byte where the data starts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is a pickle, or damaged.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():  # a folder, or a pipe that would never end
        raise ValueError(f"{path.name} is not a file: give a .safetensors file.")
    with path.open("rb") as file:
        start = file.read(9)
        if _starts_as_pickle(start):
            raise ValueError(
                f"{path.name} is a pickle, which can run code when it is read: convert it to "
                "safetensors where you trust it, and give that file."
            )
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            fault = f"its header should take {length} bytes of the file's {size}"
            raise _damaged(path, fault)
        file.seek(8)
        text = file.read(length)
    try:
        return _specs(text, size - 8 - length), 8 + length
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error) or "its header is too deep") from error


def is_pickle(path: str | Path) -> bool:
    """Whether a file starts as those of torch.save do; False for what is no file."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return _starts_as_pickle(file.read(9))


def _starts_as_pickle(start: bytes) -> bool:
    # A safetensors file starts with the length of its header, then that header's brace.
    return start.startswith(_PICKLE_STARTS) and start[8:] != b"{"


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata texts of a .safetensors file; raises as ``read_header`` does."""
    read_header(path)
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    held = header.get("__metadata__")
    if not isinstance(held, dict):
        return {}
    return {str(name): str(value) for name, value in held.items()}


def _damaged(path: Path, fault: str) -> ValueError:
    return ValueError(
        f"{path.name} is not a whole safetensors file ({fault}): fetch or export it again."
    )


def _specs(text: bytes, available: int) -> dict[str, Spec]:
    """The header's tensors in order of their bytes; available: bytes of data in the file."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    specs = {name: _spec(name, value) for name, value in header.items()}
    specs = dict(sorted(specs.items(), key=lambda item: item[1][2:]))
    at = 0
    for name, spec in specs.items():
        if spec.start != at:
            fault = "overlap" if spec.start < at else "leave a gap before"
            raise ValueError(f"the tensors' bytes {fault} {name}")
        at = spec.end
    if at != available:
        raise ValueError(f"the tensors take {at} bytes, the file has {available} for them")
    return specs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return out


def _spec(name: str, value: Any) -> Spec:
    """One entry of a header, checked for consistency."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise ValueError(f"{name} lacks dtype, shape or data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name} has the dtype {code!r}, known are {', '.join(DTYPES)}")
    whole_numbers = lambda x: isinstance(x, list) and all(type(n) is int and n >= 0 for n in x)
    if not whole_numbers(shape) or len(shape) > 32:
        raise ValueError(f"{name} has a shape that is not a list of sizes")
    if not whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{name} has data_offsets that are not [start, end]")
    dtype, (start, end) = DTYPES[code], offsets
    if math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{name} has {end - start} bytes, not those of {code} {shape}")
    return Spec(dtype, tuple(shape), start, end)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file atomically.

    The bytes are those of the format's reference implementation, one tensor in memory at a time.

    Args:
        path: the file; an existing one is replaced.
        tensors: name -> array, of a dtype in ``DTYPES``.
        metadata: texts for the header, such as {"format": "pt"}.

    Raises:
        ValueError: naming a tensor whose dtype the format lacks.
    """
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    codes = {name: _code(name, array.dtype) for name, array in arrays.items()}
    # The reference's order: widest elements first, so that all stay aligned; then by name.
    names = sorted(arrays, key=lambda n: (-_ORDER.index(codes[n]), n))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        end = at + arrays[name].nbytes
        shape = list(arrays[name].shape)
        header[name] = {"dtype": codes[name], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_little_endian(arrays[name]))
        file.flush()


def _code(name: str, dtype: np.dtype) -> str:
    for code, known in DTYPES.items():
        if dtype == known or dtype.newbyteorder("<") == known:
            return code
    raise ValueError(f"{name} has the dtype {dtype}, which safetensors has not: cast it first.")


def _little_endian(array: np.ndarray) -> Any:
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def finite(tensors: Mapping[str, Any]) -> None:
    """Check that weights are finite; reads them all, a few megabytes at a time.

    Raises:
        ValueError: naming the tensors with a NaN or an infinity.
    """
    if odd := [name for name, array in tensors.items() if not _all_finite(np.asarray(array))]:
        named = ", ".join(odd[:10]) + (f" and {len(odd) - 10} more" if len(odd) > 10 else "")
        raise ValueError(
            f"There are NaNs or infinities in {named}: the checkpoint is damaged, or was saved in "
            "a type too narrow for it; use another copy."
        )


def _all_finite(array: np.ndarray) -> bool:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    fine = all(np.isfinite(chunk).all() for chunk in _chunks(array.reshape(-1)))
    forget(array)
    return fine


def _chunks(flat: np.ndarray, size: int = 1 << 21) -> Iterable[np.ndarray]:
    return (flat[i : i + size] for i in range(0, len(flat), size))


DTYPES: dict[str, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": jnp.bfloat16,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
"""The format's names of element types."""

# The order of types in the reference implementation, narrowest first.
_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32",
    "F64", "I64", "U64",
)  # fmt: skip
