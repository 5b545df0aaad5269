"""The parts of a U-Net: blocks, levels of blocks, and the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion_jax.models import primitives
from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.layers import ResBlock, Style
from diffusion_jax.models.unet.plan import Widths, runs


class Gates(NamedTuple):
    """Gates of guidance's perturbations of a block, each [b], 1 where perturbed, or None: nowhere.

    Attributes:
        identity: the attention map becomes the identity.
        skip: the block returns its input, projected where its residual block projects it.
    """

    identity: Array | None = None
    skip: Array | None = None


OPEN = Gates()

# Keys of cond for guidance's perturbations (Ahn et al. 2024; Hyung et al. 2024).
HOOKS = ("identity_attention", "skip_blocks")


def read_gates(
    cond: Mapping[str, Any], batch: int, attention_layers: Sequence[str], blocks: Sequence[str]
) -> dict[str, Gates]:
    """Name of a block -> its gates, from cond.

    Args:
        cond: may have "identity_attention" [b, len(attention_layers)] and "skip_blocks"
            [b, len(blocks)].
        batch: b.
        attention_layers: names of the blocks that attend.
        blocks: names of all blocks.

    Raises:
        ValueError: for gates of another shape.
    """
    of_hook = {}
    for key, names in zip(HOOKS, (attention_layers, blocks), strict=True):
        gate = cond.get(key)
        if gate is not None and gate.shape != (batch, len(names)):
            raise ValueError(
                f"cond[{key!r}] has shape {gate.shape}: give {(batch, len(names))}, one column "
                f"for each of {', '.join(names) or 'no layer'}."
            )
        of_hook[key] = {} if gate is None else {n: gate[:, i] for i, n in enumerate(names)}
    return {name: Gates(*(of_hook[key].get(name) for key in HOOKS)) for name in blocks}


class Block(nn.Module):
    """A residual block on x and its skip, then attention where the level has it."""

    features: int
    style: Style
    attention: bool

    @nn.compact
    def __call__(self, x: Array, skip: Array | None, emb: Array, gates: Gates = OPEN) -> Array:
        """[b, h, w, m], [b, h, w, n] or None, [b, d] -> [b, h, w, features]."""
        x = x if skip is None else primitives.by_batch(jnp.concatenate([x, skip], axis=-1))
        h = ResBlock(self.features, self.style, name="res")(x, emb, gates.skip)
        if self.attention:
            h = SelfAttention(self.style, name="attention")(h, gates.identity, gates.skip)
        return h


class _ScannedBlock(Block):
    """Block as a scan body: (carry, skip, emb, gates) -> (carry, output)."""

    def __call__(
        self, x: Array, skip: Array | None, emb: Array, gates: Gates = OPEN
    ) -> tuple[Array, Array]:
        h = super().__call__(x, skip, emb, gates)
        return h, h


class Level(nn.Module):
    """The blocks of one level, either side of the U, and the resampler at its end.

    Attributes:
        features: channels of the level.
        widths: widths of its blocks.
        style: what all blocks share.
        attention: whether each block ends in attention.
        remat: name in ``REMATS``.
        scan_blocks: whether runs of equal blocks are scanned.
        resample: makes the module that changes the size at the end; None where the size stays.
    """

    features: int
    widths: Widths
    style: Style
    attention: bool
    remat: str
    scan_blocks: bool
    resample: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array] | None, emb: Array, gates: list[Gates]
    ) -> tuple[Array, list[Array]]:
        """Run the level.

        Args:
            x: [b, h, w, c].
            skips: one for each block on the way up; None on the way down.
            emb: [b, d].
            gates: one for each block.

        Returns:
            The level's result, and every intermediate one (the skips, on the way down).
        """
        made = []
        for first, last in runs(self.widths, self.scan_blocks):
            run = self._single if first == last else self._scan
            part = slice(first, last + 1)
            made += run(x, None if skips is None else skips[part], emb, gates[part], first, last)
            x = made[-1]
        if self.resample is not None:
            x = self.resample(self.features, self.style, name="resample")(x, emb)
            made.append(x)
        return x, made

    def _single(self, x, skips: list[Array] | None, emb, gates: list[Gates], first: int, last: int):
        cls = REMATS[self.remat](Block)
        block = cls(self.features, self.style, self.attention, name=f"block_{first}")
        return [block(x, None if skips is None else skips[0], emb, gates[0])]

    def _scan(self, x, skips: list[Array] | None, emb, gates: list[Gates], first: int, last: int):
        axes: Any = (0, nn.broadcast, 0)  # of the skips, of the embedding, of the gates
        scanned = nn.scan(
            REMATS[self.remat](_ScannedBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=axes,
            length=last - first + 1,
        )(self.features, self.style, self.attention, name=f"blocks_{first}_{last}")
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *gates)
        _, made = scanned(x, None if skips is None else jnp.stack(skips), emb, stacked)
        return list(made)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest size."""

    features: int
    style: Style
    attention: bool
    normalise: bool

    @nn.compact
    def __call__(self, x: Array, emb: Array, gates: Gates = OPEN) -> Array:
        """[b, h, w, features] -> the same."""
        h = ResBlock(self.features, self.style, name="res_0")(x, emb, gates.skip)
        if self.attention:
            attention = SelfAttention(self.style, self.normalise, name="attention")
            h = attention(h, gates.identity, gates.skip)
        return ResBlock(self.features, self.style, name="res_1")(h, emb, gates.skip)


def _keep(block: type[nn.Module], **_: Any) -> type[nn.Module]:
    return block


# What is saved for the backward pass of a block: everything, nothing, or outputs of convolutions
# and matrix products (norms and activations, which are cheap but large, are then recomputed).
REMATS: dict[str, Callable[..., Any]] = {
    "none": _keep,
    "full": partial(nn.remat, policy=jax.checkpoint_policies.nothing_saveable),
    "dots": partial(nn.remat, policy=jax.checkpoint_policies.dots_saveable),
}
