"""Large canvases, panoramas and textures that wrap around: the network sees a window at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.apps.plan import Drawing, Edit, Generator, JumpOf, Request
from diffusion_jax.core.guidance.windows import Cut, covering, hann, tiled_by

AXES = "yx"

_BORDER = 8  # latent cells of the other side beyond an edge, for the decoder


def tiles(size: int = 0, overlap: float = 0.5, wrap: str = "") -> Edit:
    """Draw a canvas of ``config.image_size`` by overlapping windows (Bar-Tal et al. 2023).

    Args:
        size: height and width of a window in pixels; 0 for what the model was trained on.
        overlap: share of a window that neighbours have in common, 0 to below 1; windows have
            smooth weights, so 0.5 leaves no seam.
        wrap: axes that go round, of "x", "y", "xy": the left edge continues the right one.

    Raises:
        ValueError: for an overlap or axes out of range.
    """
    if not 0 <= overlap < 1 or size < 0 or not set(wrap) <= set(AXES):
        raise ValueError(
            f"config.edits: tiles(size={size}, overlap={overlap}, wrap={wrap!r}): size is in "
            "pixels, overlap in [0, 1), and wrap one of '', 'x', 'y', 'xy'"
        )

    def arrays(generator: Generator, request: Request):
        geometry = generator.geometry
        if not geometry.size:
            raise ValueError("config.edits: tiles needs a model of images; this one draws points")
        if size % geometry.multiple:
            raise ValueError(
                f"config.edits: tiles(size={size}) must be a multiple of {geometry.multiple} pixels"
            )
        return ()

    def apply(drawing: Drawing, arrays) -> Drawing:
        geometry, canvas = drawing.geometry, drawing.noise.shape[1:3]
        own = (size // geometry.factor,) * 2 if size else geometry.shape[:2]
        window = tuple(min(a, b) for a, b in zip(own, canvas, strict=True))
        strides = tuple(max(1, round(n * (1 - overlap))) for n in window)
        round_ = tuple(axis in wrap for axis in AXES)
        windows = covering(canvas, window, strides, hann, round_)

        def network(jump_of: JumpOf) -> JumpOf:
            whole = drawing.network(jump_of)

            def windowed(cond, negative):
                part = lambda cut: whole(cropped(cond, cut, canvas), cropped(negative, cut, canvas))
                return tiled_by(part, windows)

            return windowed

        decode = lambda x: _decoded_round(drawing, x, round_)
        return drawing._replace(network=network, decode=decode)

    return Edit(arrays, apply)


def cropped(cond: Any, cut: Cut, canvas: tuple[int, ...]) -> Any:
    """A condition as a window has it: pictures aligned with the canvas are cut, all else is kept.

    Args:
        cond: a pytree of [b, ...]; pictures are [b, h·f, w·f, c] for some f.
        cut: the window.
        canvas: (h, w) of the latent.
    """

    def one(leaf: Array) -> Array:
        if leaf.ndim != 4 or leaf.shape[1] % canvas[0] or leaf.shape[2] % canvas[1]:
            return leaf
        factor = leaf.shape[1] // canvas[0]
        return cut(leaf, factor) if leaf.shape[2] == factor * canvas[1] else leaf

    return jax.tree.map(one, cond)


def _decoded_round(drawing: Drawing, x: Array, round_: tuple[bool, ...]) -> Array:
    """Pixels of a latent whose edges meet: the decoder sees the other side beyond each."""
    borders = [min(_BORDER, n) * goes for n, goes in zip(x.shape[1:3], round_, strict=True)]
    if not any(borders) or drawing.geometry.factor == 1:
        return drawing.decode(x)
    rows, columns = ((n, n) for n in borders)
    pixels = drawing.decode(jnp.pad(x, ((0, 0), rows, columns, (0, 0)), mode="wrap"))
    top, left = (n * drawing.geometry.factor for n in borders)
    h, w = pixels.shape[1:3]
    return pixels[:, top : h - top, left : w - left]
