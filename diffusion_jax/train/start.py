"""Parameters to start training from: a checkpoint's, or a teacher's for its student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from diffusion_jax.core.types import Params


def widened(fresh: Params, given: Params) -> Params:
    """The given parameters in a tree that may have more leaves, which are fresh.

    With the scalars of ``models.embeddings.ConditionEmbedding`` a student's first output is its
    teacher's, bit for bit.

    Args:
        fresh: initial values of the whole tree.
        given: a part of it, with equal shapes; each leaf is cast to the fresh one's dtype.

    Raises:
        ValueError: for a given parameter that is not in the tree, or has another shape there.
    """
    known = dict(jax.tree.flatten_with_path(fresh)[0])
    leaves = dict(known)
    for path, leaf in jax.tree.flatten_with_path(given)[0]:
        if path not in known:
            raise ValueError(
                f"the given parameter {path_name(path)!r} has no place in the network to train; "
                "build that with the model section that they were trained with"
            )
        if known[path].shape != leaf.shape:
            raise ValueError(
                f"the given parameter {path_name(path)!r} has shape {leaf.shape}, in the network "
                f"to train {known[path].shape}; build that with the model section that they were "
                "trained with"
            )
        leaves[path] = leaf.astype(known[path].dtype)
    return jax.tree.unflatten(jax.tree.structure(fresh), list(leaves.values()))


def path_name(path: Sequence[Any]) -> str:
    """The path of a leaf as "a/b/0/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")
