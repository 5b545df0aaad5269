"""Canvases larger than a network's own: overlapping windows, whose predictions are averaged.

MultiDiffusion (Bar-Tal et al. 2023) as a map Denoise -> Denoise, so that every solver and guidance
goes with it: panoramas, large pictures, long videos, textures that wrap around.  All windows of
one evaluation agree with one x, and so does an average of their predictions, since
x = alpha·x0 + sigma·eps is linear.

For Gaussian data the distribution of the samples is known (tests/core/test_windows.py).  For a
stationary row of 48 numbers, correlation 0.9 between neighbours, sampled by windows of 16: without
overlap, neighbours across a seam are independent (KL 6.3 nats); with equal weights their
correlation is 0.63 for stride 8 (1.6 nats) and 0.81 for stride 1 (0.25 nats).  Smooth weights gain
more than many windows: ``hann`` at stride 8 gives 0.88 (0.15 nats), and larger windows more still.
Moving the windows between evaluations (``jittered``) helps where they overlap little.  No average
of windows samples the exact distribution: variances are too small, and numbers further apart than
a window are nearly independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.core.types import Jump, NoiseLevel, Prediction


class Windows(NamedTuple):
    """Where windows are, along the axes 1 ... a of x [b, n_1, ..., n_a, ...].

    An axis that is not cut, such as the frames of a video cut in space, has one window of its own
    length.  A window that reaches over the end of an axis goes on at its beginning.

    Attributes:
        starts: [w, a], first index of each window; traced, so that it may move between evaluations.
        weights: for each axis, of the window's length there: > 0; the weight of a number is
            the product over the axes.
    """

    starts: Int[Array, "w a"]
    weights: tuple[Float[Array, "_"], ...]


class Cut(NamedTuple):
    """One window: a function that crops what is aligned with the canvas.

    Attributes:
        start: [a], its first index along each axis.
        sizes: its length along each.
        lengths: those of the canvas.
    """

    start: Int[Array, "a"]
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]

    def __call__(self, array: Array, factor: int = 1) -> Array:
        """The part of an array [b, n_1·factor, ..., n_a·factor, ...] that lies in the window.

        Args:
            array: such as a picture or a depth map at ``factor`` times the latent's resolution.
            factor: >= 1, the same along all axes.

        Raises:
            ValueError: if the array is not of that size.
        """
        expected = tuple(length * factor for length in self.lengths)
        if array.shape[1 : 1 + len(expected)] != expected:
            raise ValueError(
                f"to be cut with a canvas of {self.lengths}, an array at {factor} times its "
                f"resolution must be [b, {', '.join(map(str, expected))}, ...], got {array.shape}"
            )
        for i in range(len(self.sizes)):
            array = jnp.take(array, self.along(i, factor), axis=1 + i, mode="clip")
        return array

    def along(self, i: int, factor: int = 1) -> Int[Array, "_"]:
        """Indices of the window along axis i of such an array."""
        inside = self.start[i] * factor + jnp.arange(self.sizes[i] * factor)
        return inside % (self.lengths[i] * factor)


At = Windows | Callable[[NoiseLevel], Windows]
"""Windows, or a function of the level giving them (``jittered``)."""

Profile = Callable[[int], Float[Array, "_"]]
"""The length of a window along an axis -> its weights there, > 0."""


def tiled(denoise: Jump, windows: At) -> Jump:
    """The weighted average of a denoiser's predictions in each window, evaluated one by one.

    Args:
        denoise: of windows, a Denoise or a Jump; conditions that are aligned with the canvas are
            cut by ``tiled_by``.
        windows: must cover the canvas.
    """
    return tiled_by(lambda cut: denoise, windows)


def tiled_by(denoise_of: Callable[[Cut], Jump], windows: At) -> Jump:
    """As ``tiled``, of a denoiser that depends on the window.

    Args:
        denoise_of: window -> its denoiser, such as ``lambda cut: guidance.cfg(model, {**cond,
            "hint": cut(hint, 8)}, null, scale)``; traced once.
        windows: must cover the canvas.

    Raises:
        ValueError: when evaluated, if a window is longer than the canvas.
    """

    def averaged(x: Array, now: NoiseLevel, end: NoiseLevel | None = None) -> Prediction:
        starts, profiles = windows(now) if callable(windows) else windows
        sizes = tuple(profile.shape[0] for profile in profiles)
        lengths = x.shape[1 : 1 + len(sizes)]
        if len(lengths) < len(sizes) or any(s > n for s, n in zip(sizes, lengths, strict=True)):
            raise ValueError(f"windows of {sizes} do not fit into a canvas of {lengths}")
        weight = _product(profiles).astype(x.dtype)
        over = lambda a: weight.reshape(*sizes, *[1] * (a.ndim - 1 - len(sizes)))

        def in_window(start: Array) -> tuple[Cut, Prediction]:
            cut = Cut(start, sizes, lengths)
            levels = [] if end is None else [_cut_level(cut, end)]
            return cut, denoise_of(cut)(cut(x), _cut_level(cut, now), *levels)

        def add(carry: tuple[Prediction, Array], start: Array):
            total, weights = carry
            cut, part = in_window(start)
            place = (slice(None), *jnp.ix_(*map(cut.along, range(len(sizes)))))
            put = lambda sum_, a: sum_.at[place].add((over(a) * a).astype(sum_.dtype))
            return (jax.tree.map(put, total, part), weights.at[place].add(weight)), None

        window = jax.eval_shape(lambda: in_window(starts[0])[1])
        canvas = lambda a: jnp.zeros((len(x), *lengths, *a.shape[1 + len(sizes) :]), a.dtype)
        room = jax.tree.map(canvas, window), jnp.zeros((1, *lengths), x.dtype)
        (total, weights), _ = jax.lax.scan(add, room, starts)
        share = lambda a: a / weights.reshape(weights.shape + (1,) * (a.ndim - weights.ndim))
        return jax.tree.map(share, total)

    return averaged


def covering(
    lengths: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    profile: Profile | None = None,
    wrap: Sequence[bool] | None = None,
) -> Windows:
    """Windows every ``strides`` along each axis; the last of an axis ends where it ends.

    Args:
        lengths: of the canvas along each axis to be cut, from the first after the batch.
        sizes: of windows, at most those of the canvas.
        strides: at most the sizes.
        profile: weights along an axis; ``flat`` if None.
        wrap: whether an axis goes round, so that windows reach over its end.

    Raises:
        ValueError: for sizes or strides out of range.
    """
    return _windows(lengths, sizes, strides, profile, wrap, None)


def jittered(
    key: Key[Array, ""],
    lengths: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    profile: Profile | None = None,
    wrap: Sequence[bool] | None = None,
) -> Callable[[NoiseLevel], Windows]:
    """As ``covering``, moved as a whole by less than a stride, anew at each level.

    Along an axis that is cut and does not go round it needs one window more.  A function of the
    level, so that a Denoise stays a function; levels of their own count by their mean.

    Args:
        key: draws the moves.
        lengths, sizes, strides, profile, wrap: as in ``covering``.
    """

    def at(level: NoiseLevel) -> Windows:
        number = jax.lax.bitcast_convert_type(
            jnp.mean(level.log_snr, dtype=jnp.float32), jnp.uint32
        )
        level_key = jax.random.fold_in(key, number)
        move = jax.random.randint(level_key, (len(strides),), 0, jnp.asarray(strides))
        return _windows(lengths, sizes, strides, profile, wrap, move)

    return at


def flat(size: int) -> Float[Array, "_"]:
    """Weights of 1."""
    return jnp.ones(size)


def hann(size: int) -> Float[Array, "_"]:
    """sin² of the position in the window: smooth, and almost 0 at its ends."""
    return jnp.sin(jnp.pi * (jnp.arange(size) + 0.5) / size) ** 2


def gaussian(width: float = 0.125) -> Profile:
    """exp(-u²/(2·width²)), u the distance from the middle in sizes of the window."""
    middle = lambda size: (jnp.arange(size) + 0.5) / size - 0.5
    return lambda size: jnp.exp(-((middle(size) / width) ** 2) / 2)


def _windows(lengths, sizes, strides, profile, wrap, move: Array | None) -> Windows:
    wrap = [False] * len(lengths) if wrap is None else wrap
    axes = list(zip(lengths, sizes, strides, wrap, strict=True))
    for length, size, stride, _ in axes:
        if not 1 <= stride <= size <= length:
            raise ValueError(
                f"windows of size {size} every {stride} along an axis of {length}: need "
                "1 <= stride <= size <= length"
            )
    moves = [None] * len(axes) if move is None else list(move)
    each = [_starts(*axis, move) for axis, move in zip(axes, moves, strict=True)]
    mesh = jnp.meshgrid(*each, indexing="ij")
    starts = jnp.stack([m.reshape(-1) for m in mesh], axis=-1)
    return Windows(starts, tuple((profile or flat)(size) for size in sizes))


def _starts(length: int, size: int, stride: int, wrap: bool, move: Array | None) -> Array:
    """First indices along an axis, [w]; a move is back by 0 ... stride - 1."""
    back = 0 if move is None else move
    if wrap:
        count = -(-length // stride)
        return (stride * jnp.arange(count) - back) % length
    # Clipped at both ends, so that the canvas stays covered: this takes one more where they move.
    more = 0 if move is None or length == size else 1
    count = 1 + -(-(length - size) // stride) + more
    return jnp.clip(stride * jnp.arange(count) - back, 0, length - size)


def _cut_level(cut: Cut, level: NoiseLevel) -> NoiseLevel:
    """The level of a window: frames or pixels with levels of their own are cut, others are not."""

    def one(leaf: Array) -> Array:
        for i in range(min(len(cut.sizes), leaf.ndim - 1)):
            if leaf.shape[1 + i] > 1:
                leaf = jnp.take(leaf, cut.along(i), axis=1 + i, mode="clip")
        return leaf

    return jax.tree.map(one, level)


def _product(profiles: Sequence[Array]) -> Array:
    weight = jnp.ones(())
    for profile in profiles:
        weight = weight[..., None] * profile
    return weight


__all__ = [
    "At",
    "Cut",
    "Windows",
    "covering",
    "flat",
    "gaussian",
    "hann",
    "jittered",
    "tiled",
    "tiled_by",
]
