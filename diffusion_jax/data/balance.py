"""Balancing: all variants of one thing together are as frequent as a thing without variants.

Half of the emoji are persons in five skin tones and three genders: without balancing a network sees
a flag once while it sees the health worker eighteen times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from diffusion_jax.data import order

MEMBER = 3  # stream of random choices, after those of ``fetch``


def groups_of(captions: Sequence[str], words: str) -> list[np.ndarray]:
    """Groups of examples whose captions are equal up to some words, as indices.

    Args:
        captions: captions of all examples.
        words: a regular expression; its matches are what variants of one thing differ by.

    Raises:
        ValueError: if it is not a regular expression.
    """
    try:
        pattern = re.compile(words)
    except re.error as error:
        raise ValueError(
            f"balance is {words!r}, which is no regular expression: {error}."
        ) from None
    found: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        found.setdefault(" ".join(pattern.sub(" ", caption).split()), []).append(i)
    return [np.asarray(members) for members in found.values()]


def members(
    groups: Sequence[np.ndarray], which: np.ndarray, where: np.ndarray, seed: int
) -> np.ndarray:
    """A random example of each group, int64 [b], drawn anew at each position.

    Args:
        groups: from ``groups_of``.
        which: index of the group at each position, int64 [b].
        where: the positions, int64 [b].
        seed: seed of the draws.
    """
    draws = order.uniform(seed, MEMBER, where)
    return np.array([groups[g][int(u * len(groups[g]))] for g, u in zip(which, draws, strict=True)])
