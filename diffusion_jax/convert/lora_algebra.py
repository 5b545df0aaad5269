"""The differences that adapter files describe, as closed forms in PyTorch's axes, in float32.

A dense weight is [out, in], a convolution's [out, in, kh, kw]; s is alpha/rank.

    LoRA     s·up·down (Hu et al. 2022); with a core, s·core x1 up x2 down
    LoHa     s·(w1_a·w1_b)∘(w2_a·w2_b) (Hyeon-Woo et al. 2022), each with a core for convolutions
    LoKr     s·w1 ⊗ w2 (Yeh et al. 2024, section 3), each factor whole or of low rank
    (IA)^3   w∘W by row or column (Liu et al. 2022)
    full     a difference as it is, of weights, biases or norms
    DoRA     m·(W + d)/|W + d| - W around any d above (Liu et al. 2024, equation 5)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Shape = tuple[int, ...]


class Algebra(NamedTuple):
    """One kind of difference; roles are the names of its tensors.

    Attributes:
        title: the name of such an adapter, for people.
        needs: roles there -> the roles that must be there.
        may: further roles.
        shapes: (shapes there, the weight's) -> the shapes that they must have.
        rank: shapes there -> the rank that alpha is divided by; None for none.
        weight: (tensors, weight, s) -> the difference of the weight, of its size; None for none.
        bias: (tensors, bias, s) -> the difference of the bias; None for none.
    """

    title: str
    needs: Callable[[frozenset[str]], set[str]]
    may: frozenset[str]
    shapes: Callable[[Shapes, Shape], dict[str, Shape]]
    rank: Callable[[Shapes], int | None]
    weight: Callable[[Tensors, np.ndarray, float], np.ndarray | None]
    bias: Callable[[Tensors, np.ndarray, float], np.ndarray | None]


def decomposed(weight: np.ndarray, change: np.ndarray, tensors: Tensors) -> np.ndarray:
    """The difference of DoRA around a change.

    PEFT's magnitudes ("magnitude") are those of outputs; "dora_scale" of LyCORIS and kohya is
    [out, 1, ...] or [1, in, ...], which says by its shape whose norms it scales.

    Args:
        weight, change: [out, in, ...].
        tensors: with one of both.
    """
    moved = weight + change
    by_output = "magnitude" in tensors or _by_output(tensors["dora_scale"].shape, weight.shape)
    kept = 0 if by_output else 1
    others = tuple(axis for axis in range(weight.ndim) if axis != kept)
    norm = np.sqrt(np.sum(np.square(moved, dtype=np.float64), others, keepdims=True))
    size = tensors.get("magnitude", tensors.get("dora_scale"))
    factor = np.asarray(size).reshape(norm.shape) / np.where(norm == 0, 1.0, norm)
    return (moved * factor - weight).astype(np.float32)


def _by_output(size: Shape, weight: Shape) -> bool:
    return len(size) < 2 or (size[0] == weight[0] and all(n == 1 for n in size[1:]))


def core(core_: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Tucker's product [out, in, kh, kw] of a core [r, q, kh, kw], out [out, r], into [q, in]."""
    return np.einsum("rqkl,or,qi->oikl", core_, out, into, optimize=True)


def _lora_shapes(found: Shapes, weight: Shape) -> dict[str, Shape]:
    out, into, *kernel = weight if len(weight) > 1 else (*weight, 1)
    ones = tuple(1 for _ in kernel)
    rank = _at(found, "down", 0) if "mid" in found else _at(found, "up", 1) or _at(found, "down", 0)
    up_rank = _at(found, "up", 1) if "mid" in found else rank
    wanted = {
        "down": (rank, into, *(ones if "mid" in found else kernel)),
        "up": (out, up_rank, *ones),
        "mid": (up_rank, rank, *kernel),
        "up_bias": (out,),
    }
    # A 1x1 convolution may be adapted as a dense layer, and the other way round.
    return {role: _flat(found, role, shape) for role, shape in wanted.items() if role in found}


def _lora(tensors: Tensors, weight: np.ndarray, s: float) -> np.ndarray:
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:
        two = lambda x: x.reshape(x.shape[:2])
        return np.float32(s) * core(tensors["mid"], two(up), two(down))
    return np.float32(s) * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))


def _loha_shapes(found: Shapes, weight: Shape) -> dict[str, Shape]:
    out, into, *kernel = weight if len(weight) > 1 else (*weight, 1)
    wanted: dict[str, Shape] = {}
    for i in "12":
        rank = _at(found, f"hada_w{i}_b", 0)
        if f"hada_t{i}" in found:
            wanted[f"hada_t{i}"] = (rank, rank, *kernel)
            wanted |= {f"hada_w{i}_a": (rank, out), f"hada_w{i}_b": (rank, into)}
        else:
            flat = into * int(np.prod(kernel, dtype=int))
            wanted |= {f"hada_w{i}_a": (out, rank), f"hada_w{i}_b": (rank, flat)}
    return wanted


def _loha(tensors: Tensors, weight: np.ndarray, s: float) -> np.ndarray:
    def half(i: str) -> np.ndarray:
        a, b = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        if f"hada_t{i}" in tensors:
            return core(tensors[f"hada_t{i}"], a.T, b).reshape(weight.shape)
        return (a @ b).reshape(weight.shape)

    return np.float32(s) * half("1") * half("2")


def _lokr_needs(roles: frozenset[str]) -> set[str]:
    halves = lambda i: {f"lokr_w{i}"} if f"lokr_w{i}" in roles else {f"lokr_w{i}_a", f"lokr_w{i}_b"}
    return halves("1") | halves("2")


def _lokr_shapes(found: Shapes, weight: Shape) -> dict[str, Shape]:
    out, into, *kernel = weight if len(weight) > 1 else (*weight, 1)
    flat = int(np.prod(kernel, dtype=int))
    rows, columns = _at(found, "lokr_w1", 0), _at(found, "lokr_w1", 1)
    if "lokr_w1" not in found:
        rows, columns = _at(found, "lokr_w1_a", 0), _at(found, "lokr_w1_b", 1)
    # What divides neither is left as it is found, and the rest cannot fit it.
    m, n = (out // rows if rows else 0), (into // columns if columns else 0)
    if not rows or not columns or (rows * m, columns * n) != (out, into):
        m = n = 0
    first, second = _at(found, "lokr_w1_b", 0), _at(found, "lokr_w2_b", 0)
    wanted = {
        "lokr_w1": (rows, columns), "lokr_w1_a": (rows, first), "lokr_w1_b": (first, columns),
        "lokr_w2": (m, n, *kernel), "lokr_w2_a": (m, second), "lokr_w2_b": (second, n * flat),
    }  # fmt: skip
    if "lokr_t2" in found:
        wanted["lokr_t2"] = (second, second, *kernel)
        wanted |= {"lokr_w2_a": (second, m), "lokr_w2_b": (second, n)}
    wanted = {role: shape for role, shape in wanted.items() if role in found}
    return {role: _flat(found, role, shape) for role, shape in wanted.items()}


def _lokr_rank(found: Shapes) -> int | None:
    """Of the factor of low rank; two whole ones have none."""
    low = next((role for role in ("lokr_w2_b", "lokr_w1_b") if role in found), None)
    return None if low is None else _at(found, low, 0)


def _lokr(tensors: Tensors, weight: np.ndarray, s: float) -> np.ndarray:
    first = tensors.get("lokr_w1")
    first = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"] if first is None else first
    if "lokr_t2" in tensors:
        second = core(tensors["lokr_t2"], tensors["lokr_w2_a"].T, tensors["lokr_w2_b"])
    elif "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    else:
        second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    second = second.reshape(len(second), -1)  # its inputs before the kernel's places
    return np.float32(s) * np.kron(first.reshape(first.shape[:2]), second).reshape(weight.shape)


def _ia3_shapes(found: Shapes, weight: Shape) -> dict[str, Shape]:
    return {"on_input": found.get("on_input", ())} | _sized(found, "scale", weight[:2])


def _ia3(tensors: Tensors, weight: np.ndarray, s: float) -> np.ndarray:
    axis = 1 if bool(np.any(tensors["on_input"])) else 0
    return weight * _along(tensors["scale"], axis, weight)


def _peft_ia3(tensors: Tensors, weight: np.ndarray, s: float) -> np.ndarray:
    axis = 1 if tensors["on_input"] else 0
    return weight * (_along(tensors["ia3_l"], axis, weight) - 1)


def _peft_ia3_bias(tensors: Tensors, bias: np.ndarray, s: float) -> np.ndarray | None:
    return None if tensors["on_input"] else bias * (tensors["ia3_l"].reshape(-1) - 1)


def _along(factors: np.ndarray, axis: int, weight: np.ndarray) -> np.ndarray:
    shape = [1] * weight.ndim
    shape[axis] = factors.size
    return factors.reshape(shape)


def _sized(found: Shapes, role: str, sizes: tuple[int, ...]) -> dict[str, Shape]:
    """Any shape of one of these numbers of elements, with one axis longer than 1 at most."""
    shape = found.get(role, ())
    fits = int(np.prod(shape, dtype=int)) in sizes and max(shape, default=1) in sizes
    return {role: shape if fits else sizes[:1]}


def _whole_shapes(found: Shapes, weight: Shape) -> dict[str, Shape]:
    return {r: _flat(found, r, weight) for r in ("diff", "w_norm") if r in found}


def _at(found: Shapes, role: str, axis: int) -> int:
    """A size of a tensor; 0 if it has no such axis."""
    shape = found.get(role, ())
    return shape[axis] if len(shape) > axis else 0


def _flat(found: Shapes, role: str, wanted: Shape) -> Shape:
    """The wanted shape, with or without trailing ones, as it is found."""
    shape = found.get(role, wanted)
    bare = lambda s: s[:2] if len(s) > 2 and all(n == 1 for n in s[2:]) else s
    return shape if bare(shape) == bare(wanted) else wanted


_none = lambda tensors, array, s: None
_no_rank = lambda found: None
_exactly = lambda *roles: lambda there: set(roles)
_NORMED = frozenset({"alpha", "dora_scale", "magnitude"})

ALGEBRAS: tuple[Algebra, ...] = (
    Algebra(
        "LoHa", _exactly("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        _NORMED | {"hada_t1", "hada_t2"}, _loha_shapes,
        lambda found: _at(found, "hada_w1_b", 0), _loha, _none,
    ),
    Algebra(
        "LoKr", _lokr_needs, _NORMED | {"lokr_t2"}, _lokr_shapes, _lokr_rank, _lokr, _none,
    ),
    Algebra(
        "LoRA", _exactly("down", "up"), _NORMED | {"mid", "up_bias"}, _lora_shapes,
        lambda found: _at(found, "down", 0), _lora,
        lambda tensors, bias, s: np.float32(s) * tensors.get("up_bias", np.zeros(1, np.float32)),
    ),
    Algebra(
        "(IA)^3", _exactly("scale", "on_input"), frozenset({"alpha"}), _ia3_shapes, _no_rank, _ia3,
        _none,
    ),
    Algebra(
        "(IA)^3", _exactly("ia3_l"), frozenset({"on_input"}),
        lambda found, weight: _sized(found, "ia3_l", weight[:2]), _no_rank, _peft_ia3,
        _peft_ia3_bias,
    ),
    Algebra(
        "full difference", _exactly("diff"), frozenset({"alpha"}), _whole_shapes, _no_rank,
        lambda tensors, weight, s: tensors["diff"].reshape(weight.shape), _none,
    ),
    Algebra(
        "difference of norms", _exactly("w_norm"), frozenset({"alpha"}), _whole_shapes, _no_rank,
        lambda tensors, weight, s: tensors["w_norm"].reshape(weight.shape), _none,
    ),
    Algebra(
        "difference of biases", lambda there: set(), frozenset(), lambda found, weight: {},
        _no_rank, _none, _none,
    ),
)  # fmt: skip
"""The first of which a file has any needed role counts."""
