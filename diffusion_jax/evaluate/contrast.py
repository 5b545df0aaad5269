"""Agreement of images and captions: a contrastively trained judge, and retrieval by it.

The judge embeds the features of images and captions in one space, so that each image of a batch is
nearest to its own caption and vice versa (Radford et al. 2021, figure 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from diffusion_jax.core import seeds
from diffusion_jax.core.types import Params
from diffusion_jax.evaluate.figures import Figure, mean_of, proportion

Embed = Callable[..., tuple[Array, Array, Array]]
"""(params, image features [n, d], caption features [n, e], key or None) -> unit vectors
([n, k], [n, k]) and the logarithm of the inverse temperature; a key while training."""


class CaptionJudge(NamedTuple):
    """A trained image tower and text tower."""

    embed: Embed
    params: Params

    def similarity(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Cosine of every image [n, d] with every caption [m, e], [n, m] in [-1, 1]."""
        embed = jax.jit(lambda image, text: self.embed(self.params, image, text, None)[:2])
        image_embeddings = embed(image, np.resize(text, (len(image), text.shape[1])))[0]
        text_embeddings = embed(np.resize(image, (len(text), image.shape[1])), text)[1]
        return np.asarray(image_embeddings @ text_embeddings.T)


def contrast(image: Array, text: Array, log_scale: Array) -> Float[Array, ""]:
    """The symmetric cross-entropy of n pairs of unit vectors [n, k] (InfoNCE).

    Args:
        image, text: row i of one belongs to row i of the other.
        log_scale: logarithm of the inverse temperature, bounded by log 100 here.
    """
    logits = jnp.exp(jnp.minimum(log_scale, jnp.log(100.0))) * image @ text.T
    targets = jnp.arange(len(logits))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return (cross_entropy(logits, targets).mean() + cross_entropy(logits.T, targets).mean()) / 2


def train_caption_judge(
    init: Callable[[Array], Params],
    embed: Embed,
    images: np.ndarray,
    texts: np.ndarray,
    epochs: int = 60,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> CaptionJudge:
    """AdamW on ``contrast``.

    Args:
        init: key -> parameters.
        embed: the towers.
        images: features [v, n, d] of v views of each image; a step sees one, drawn at random.
        texts: features of their captions [n, e].
        epochs: passes over the captions.
        batch_size: pairs in a step; each is contrasted with all others.
        learning_rate: peak of a warm-up and cosine decay.
        seed: seed of all random draws.
    """
    views, count = images.shape[:2]
    size = min(batch_size, count)
    per_epoch = count // size
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, per_epoch, epochs * per_epoch)
    tx = optax.adamw(rate, weight_decay=1e-2)
    all_images, all_texts = jnp.asarray(images), jnp.asarray(texts)

    def loss(params, view, index, key):
        return contrast(*embed(params, all_images[view, index], all_texts[index], key))

    @jax.jit
    def step(state, index, key):
        params, opt_state = state
        view_key, net_key = jax.random.split(key)
        view = jax.random.randint(view_key, index.shape, 0, views)
        value, grads = jax.value_and_grad(loss)(params, view, index, net_key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    init_key, *epoch_keys = jax.random.split(seeds.key(seed), epochs + 1)
    params = init(init_key)
    state = (params, tx.init(params))
    bar = tqdm(epoch_keys, desc="training the judge of captions", unit="epoch", leave=False)
    for key in bar:
        order_key, steps_key = jax.random.split(key)
        order = jax.random.permutation(order_key, count)[: per_epoch * size]
        value = jnp.zeros(())
        for index, k in zip(
            order.reshape(per_epoch, size), jax.random.split(steps_key, per_epoch), strict=True
        ):
            state, value = step(state, index, k)
        bar.set_postfix_str(f"loss {float(value):.2f}")
    return CaptionJudge(embed, state[0])


def ranks(similarity: Float[np.ndarray, "n n"]) -> np.ndarray:
    """The number of captions that each image is nearer to than to its own, int [n]; 0 is best.

    Args:
        similarity: of image i (row) with caption j (column), where i belongs to i.

    Raises:
        FloatingPointError: if one is not finite; it would count as rank 0.
    """
    if not np.isfinite(similarity).all():
        raise FloatingPointError("the caption judge returned NaN; the images may not be finite")
    matching = np.diag(similarity)[:, None]
    # Half of the ties count: a judge without any information scores at chance level.
    nearer, equal = (similarity > matching).sum(1), (similarity == matching).sum(1) - 1
    return nearer + (equal + 1) // 2


def retrieval(similarity: Float[np.ndarray, "n n"], of: str) -> dict[str, Figure]:
    """Shares of images whose caption is nearest, or among the five nearest, of n captions.

    Args:
        similarity: as in ``ranks``.
        of: what the images are, for the names of the figures.
    """
    found, n = ranks(similarity), len(similarity)
    return {
        f"caption found first of {n}, {of}": proportion(found < 1),
        f"caption among first 5 of {n}, {of}": proportion(found < 5),
    }


def adherence(similarity: Float[np.ndarray, "n n"]) -> Figure:
    """Mean cosine of images with their captions, minus that with other captions."""
    n = len(similarity)
    matching = np.diag(similarity)
    others = (similarity.sum(1) - matching) / max(n - 1, 1)
    return mean_of(matching - others)


def diversity(features: Float[np.ndarray, "p k d"]) -> Figure:
    """Mean feature distance of two images with the same caption.

    Args:
        features: of k images for each of p captions, k at least 2.
    """
    distance = np.linalg.norm(features[:, :, None] - features[:, None], axis=-1)
    k = features.shape[1]
    return mean_of(distance.sum((1, 2)) / (k * (k - 1)))
