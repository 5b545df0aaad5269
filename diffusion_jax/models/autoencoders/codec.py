"""From an autoencoder to a ``Codec``: scaled codes, and large images tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core.types import Codec, Params
from diffusion_jax.models.autoencoders.autoencoder import AutoencoderKL, AutoencoderVQ, check_pixels


class Tiling(NamedTuple):
    """How a large image is cut, so that memory is that of one tile beside input and output.

    A norm's statistics and the attention of a tile are its own, so tiles differ a little from the
    whole; neighbours are blended linearly where they overlap.

    Attributes:
        size: codes of a tile, each way.
        overlap: codes that neighbours share at least, less than ``size``.
    """

    size: int = 64
    overlap: int = 16


def codec(
    module: AutoencoderKL | AutoencoderVQ,
    scale: Any,
    shift: Any = 0.0,
    draw: str = "sample",
    tiling: Tiling | None = None,
) -> Codec:
    """Pixels <-> scale·(code - shift), with the parameters ``frozen["autoencoder"]``.

    A raw latent is the code; the decoder is deterministic.

    Args:
        module: the autoencoder.
        scale, shift: numbers, or arrays [z] for each channel; in latent diffusion codes then have
            about unit variance (Rombach et al. 2022, appendix G).
        draw: which code of a posterior ``encode`` takes, of ``DRAWS``; of a codebook, its entries
            in any case.
        tiling: None for the whole image at once.

    Returns:
        The codec.  Sizes of pixels are multiples of ``module.factor``.

    Raises:
        ValueError: for an unknown draw, or tiles that do not advance.
    """
    if draw not in DRAWS:
        raise ValueError(f"draw = {draw!r}; known are {', '.join(sorted(DRAWS))}")
    if tiling is not None and not 0 <= tiling.overlap < tiling.size:
        raise ValueError(
            f"tiles of size = {tiling.size} with overlap = {tiling.overlap} do not advance; "
            "take 0 <= overlap < size"
        )
    scale, shift = np.asarray(scale, np.float32), np.asarray(shift, np.float32)
    factor = module.factor

    def run(frozen: Params, x: Array, method: str) -> Any:
        return module.apply({"params": frozen["autoencoder"]}, x, method=method)

    def scaled(z: Array) -> Array:
        return scale * (z - shift)

    def unscaled(x: Array) -> Array:
        return x / scale + shift

    def code(frozen: Params, pixels: Array) -> Any:
        check_pixels(pixels.shape, factor)
        features = _tiled(lambda x: run(frozen, x, "features"), pixels, tiling, factor, 1)
        return run(frozen, features, "code")

    def encode(frozen: Params, pixels: Array, key: Array) -> Array:
        return scaled(DRAWS[draw](code(frozen, pixels), key))

    def decode(frozen: Params, x: Array, key: Array) -> Array:
        del key
        return _tiled(lambda z: run(frozen, z, "decode"), unscaled(x), tiling, 1, factor)

    def posterior(frozen: Params, pixels: Array) -> tuple[Array, Array]:
        return code(frozen, pixels).moments()

    return Codec(encode, decode, posterior, scaled, unscaled)


def _tiled(
    f: Callable[[Array], Array],
    x: Float[Array, "b h w c"],
    tiling: Tiling | None,
    before: int,
    after: int,
) -> Float[Array, "b h2 w2 d"]:
    """f of the tiles of x, blended; f itself where one tile is all.

    Args:
        f: [b, n·before, m·before, c] -> [b, n·after, m·after, d].
        x: what is cut.
        tiling: in codes.
        before, after: pixels of a code, each way, in x and in f(x).
    """
    codes = [n // before for n in x.shape[1:3]]
    if tiling is None or max(codes) <= tiling.size:
        return f(x)
    sides = [min(tiling.size, n) for n in codes]
    starts = [_starts(n, side, tiling.overlap) for n, side in zip(codes, sides, strict=True)]
    ramps = [
        _weights(start, n, side, tiling.overlap, after)
        for start, n, side in zip(starts, codes, sides, strict=True)
    ]
    cut = lambda corner: jax.lax.dynamic_slice(
        x,
        (0, corner[0] * before, corner[1] * before, 0),
        (x.shape[0], sides[0] * before, sides[1] * before, x.shape[3]),
    )
    made = jax.eval_shape(f, cut(jnp.zeros(2, jnp.int32)))
    whole = jnp.zeros((x.shape[0], *(n * after for n in codes), made.shape[-1]), made.dtype)

    def add(whole, tile):
        corner, rows, columns = tile
        at = (0, corner[0] * after, corner[1] * after, 0)
        piece = f(cut(corner)) * (rows[:, None] * columns)[..., None]
        there = jax.lax.dynamic_slice(whole, at, piece.shape)
        return jax.lax.dynamic_update_slice(whole, there + piece, at), None

    index = np.indices((len(starts[0]), len(starts[1]))).reshape(2, -1)
    corners = np.stack([starts[0][index[0]], starts[1][index[1]]], 1)
    tiles = (jnp.asarray(corners, jnp.int32), ramps[0][index[0]], ramps[1][index[1]])
    return jax.lax.scan(add, whole, tiles)[0]


def _starts(n: int, side: int, overlap: int) -> np.ndarray:
    """First code of each tile; the last one is moved back to end where the image ends."""
    return np.minimum(np.arange(max(1, -(-(n - overlap) // (side - overlap))))
                      * (side - overlap), n - side)  # fmt: skip


def _weights(starts: np.ndarray, n: int, side: int, overlap: int, unit: int) -> np.ndarray:
    """Share of each tile in each of its pixels, float32 [tiles, side·unit]; shares sum to 1."""
    place = np.arange(side * unit)
    ramp = np.minimum(np.minimum(place + 1, side * unit - place), overlap * unit + 1)
    where = starts[:, None] * unit + place
    total = np.zeros(n * unit)
    np.add.at(total, where, ramp)
    return (ramp / total[where]).astype(np.float32)


DRAWS: dict[str, Callable[[Any, Array], Array]] = {
    "mode": lambda code, key: code.mode(),
    "sample": lambda code, key: code.sample(key),
}

IDENTITY = Codec(
    encode=lambda frozen, pixels, key: pixels,
    decode=lambda frozen, x, key: x,
    posterior=lambda frozen, pixels: (pixels, jnp.zeros_like(pixels)),
    scale=lambda z: z,
    unscale=lambda x: x,
)
"""Diffusion in pixels."""
