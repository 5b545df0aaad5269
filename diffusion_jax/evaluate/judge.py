"""The judge: a classifier trained on real images, for the class accuracy of samples."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from diffusion_jax.core import seeds
from diffusion_jax.core.types import Params
from diffusion_jax.evaluate.figures import Figure, proportion
from diffusion_jax.files import whole

Logits = Callable[..., Array]
"""(params, images [n, h, w, c] in [-1, 1], key or None) -> [n, classes]; a key while training."""


class Judge(NamedTuple):
    """A trained classifier, and its accuracy on held-out images."""

    logits: Logits
    params: Params
    held_out: Figure


def train_judge(
    init: Callable[[Array], Params],
    logits: Logits,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    epochs: int = 15,
    batch_size: int = 50,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Judge:
    """AdamW on cross-entropy, with small random shifts, rotations and scales of the images.

    Args:
        init: key -> parameters.
        logits: the classifier.
        train, test: (images uint8 [n, h, w, c], labels int32 [n]).
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: peak of a warm-up and cosine decay.
        seed: seed of all random draws.
    """
    images, labels = (jnp.asarray(x) for x in train)
    size = min(batch_size, len(images))
    per_epoch = len(images) // size
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, per_epoch, epochs * per_epoch)
    tx = optax.adamw(rate, weight_decay=1e-2)

    def loss(params, x, y, key):
        move_key, net_key = jax.random.split(key)
        out = logits(params, augment(move_key, to_unit_range(x)), net_key)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    # One call for each step: XLA:CPU takes ten times as long for convolutions inside a scan.
    @jax.jit
    def step(state, index, key):
        params, opt_state = state
        grads = jax.grad(loss)(params, images[index], labels[index], key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    init_key, *epoch_keys = jax.random.split(seeds.key(seed), epochs + 1)
    params = init(init_key)
    state = (params, tx.init(params))
    for key in tqdm(epoch_keys, desc="training the judge", unit="epoch", leave=False):
        order_key, steps_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(images))[: per_epoch * size]
        steps = zip(
            order.reshape(per_epoch, size), jax.random.split(steps_key, per_epoch), strict=True
        )
        for index, step_key in steps:
            state = step(state, index, step_key)
        jax.block_until_ready(state)  # so that the bar counts finished steps, not queued ones
    return Judge(logits, state[0], accuracy(logits, state[0], *test))


def cached_judge(
    init: Callable[[Array], Params],
    logits: Logits,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    path: Path,
) -> Judge:
    """The judge with the parameters at ``path``; trained and saved there if there are none."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    if path.exists():
        try:
            with np.load(path) as stored:
                leaves = [stored[f"{i}"] for i in range(len(stored.files))]
            params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
            if [x.shape for x in leaves] != [x.shape for x in jax.tree.leaves(shapes)]:
                raise ValueError("its arrays have different shapes from this classifier's")
            return Judge(logits, params, accuracy(logits, params, *test))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is damaged ({error}); the judge is trained anew", stacklevel=2)
    judge = train_judge(init, logits, train, test)
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{f"{i}": x for i, x in enumerate(jax.tree.leaves(judge.params))})
    return judge


def accuracy(logits: Logits, params: Params, images: np.ndarray, labels: np.ndarray) -> Figure:
    """Share of images whose most probable class is their label.

    Args:
        logits: the classifier.
        params: its parameters.
        images: uint8 [n, h, w, c].
        labels: int32 [n].
    """
    read = jax.jit(lambda params, x: jnp.argmax(logits(params, to_unit_range(x), None), -1))
    parts = np.array_split(images, max(1, len(images) // 500))
    classes = np.concatenate([np.asarray(read(params, part)) for part in parts])
    return proportion(classes == labels)


def to_unit_range(images: Array) -> Float[Array, "n h w c"]:
    """0..255 -> [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def augment(key: Array, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Each image rotated by about 6°, scaled by about 8 % and shifted by up to 2 pixels."""
    n, h, w, _ = x.shape
    matrix_key, shift_key = jax.random.split(key)
    matrix = jnp.eye(2) + 0.08 * jax.random.normal(matrix_key, (n, 2, 2))
    shift = jax.random.uniform(shift_key, (n, 2), minval=-2, maxval=2)
    centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1) - centre
    where = jnp.einsum("nij,hwj->nhwi", matrix, grid) + centre + shift[:, None, None]
    return jax.vmap(_bilinear)(x, where)


def _bilinear(image: Float[Array, "h w c"], where: Float[Array, "h w 2"]) -> Array:
    """The image at real-valued (row, column) positions; outside it, its border."""
    limit = jnp.array(image.shape[:2]) - 1
    low = jnp.floor(where)
    weight = (where - low)[..., None]
    at = lambda dy, dx: image[
        tuple(jnp.moveaxis(jnp.clip(low.astype(int) + jnp.array([dy, dx]), 0, limit), -1, 0))
    ]
    wy, wx = weight[..., 0, :], weight[..., 1, :]
    top = at(0, 0) * (1 - wx) + at(0, 1) * wx
    bottom = at(1, 0) * (1 - wx) + at(1, 1) * wx
    return top * (1 - wy) + bottom * wy
