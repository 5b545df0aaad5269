"""ControlNet: a copy of a U-Net's way down that reads a picture, such as edges or a pose.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core.types import Cond, Net, Params, like
from diffusion_jax.models.layers import Conv, Dense
from diffusion_jax.models.primitives import silu
from diffusion_jax.models.unet.blocks import Gates
from diffusion_jax.models.unet.text_blocks import Text
from diffusion_jax.models.unet.text_unet import TextEncoderSide

_ZEROS = nn.initializers.zeros_init()

# Keys of cond that a ControlNet reads beside the hint.
_READS = ("context", "context_mask", "pooled", "time_ids", "label")


class HintEmbedding(nn.Module):
    """A picture -> features at the size of the latents, zero at initialisation.

    Attributes:
        features: channels out.
        widths: of the convolutions; the size halves between two.
        dtype: of the computation.
    """

    features: int
    widths: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, hint: Float[Array, "b H W c"]) -> Float[Array, "b h w n"]:
        """[b, H, W, c] -> [b, H / 2^k, W / 2^k, features], k = len(widths) - 1."""
        h = silu(Conv(self.widths[0], self.dtype, name="conv_in")(hint))
        for i, (here, below) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            h = silu(Conv(here, self.dtype, name=f"conv_{2 * i}")(h))
            h = silu(Conv(below, self.dtype, 2, name=f"conv_{2 * i + 1}")(h))
        return Conv(self.features, self.dtype, kernel_init=_ZEROS, name="conv_out")(h)


class ControlNet(TextEncoderSide):
    """[b, h, w, c], [b], cond -> what to add to the skips and the middle of a ``TextUNet``.

    Attributes beside those of ``TextEncoderSide``, which must be the U-Net's:
        hint_widths: of the convolutions that read the hint.
    """

    hint_widths: tuple[int, ...] = (16, 32, 96, 256)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        cond: Mapping[str, Any],
        *,
        scale: Float[Array, "*b"] | float = 1.0,
        train: bool = False,
    ) -> dict[str, Any]:
        """Run the net.

        Args:
            x: as the U-Net's.
            time: as the U-Net's.
            cond: "context" and the rest as for the U-Net, but for hooks; and "hint" [b, H, W, 3]
                in [0, 1], H = 2^k·h and W = 2^k·w, k = len(hint_widths) - 1.
            scale: factor on the result, [] or [b].
            train: whether dropout is on, which needs an rng named "dropout".

        Returns:
            {"down": one [b, h', w', c'] for each skip, "mid": [b, h', w', c']}, in ``dtype``, zero
            at initialisation.

        Raises:
            ValueError: for a hint of another size, and as the U-Net does.
        """
        self._check(x, cond, {"hint"})
        self._check_hint(x, cond)
        style = self._style(train)
        dtype = style.dtype
        emb = self._embed(time, cond).astype(dtype)
        text = Text.of(cond)
        hint = HintEmbedding(self.features[0], self.hint_widths, dtype, name="hint")(cond["hint"])
        h = Conv(self.features[0], dtype, name="conv_in")(x) + hint
        h, skips = self._down(h, emb, text, style, {"mid": Gates()})
        zero = lambda z, name: Dense(z.shape[-1], dtype, kernel_init=_ZEROS, name=name)(z)
        factor = jnp.asarray(scale, dtype)
        down = (zero(skip, f"zero_{i}") for i, skip in enumerate(skips))
        return {
            "down": tuple(z * like(factor, z) for z in down),
            "mid": zero(h, "zero_mid") * like(factor, h),
        }

    def _check_hint(self, x: Array, cond: Mapping[str, Any]) -> None:
        if "hint" not in cond:
            raise ValueError("cond lacks 'hint', the picture that this network reads: add it.")
        factor = 2 ** (len(self.hint_widths) - 1)
        wanted = (x.shape[0], factor * x.shape[1], factor * x.shape[2])
        if cond["hint"].shape[:3] != wanted:
            raise ValueError(
                f"cond['hint'] has shape {cond['hint'].shape}: for x of {x.shape} give "
                f"{(*wanted, 3)}."
            )


def copy_encoder(unet_params: Params, control_params: Params) -> Params:
    """A fresh ControlNet's parameters with the U-Net's in every place that both have.

    So training starts from the U-Net's own reading of its input (Zhang et al. 2023, section 3.2).

    Raises:
        ValueError: if a shared part has other shapes, naming it.
    """
    shared = {name: unet_params[name] for name in control_params if name in unet_params}
    for name, part in shared.items():
        shapes = [jax.tree.map(jnp.shape, p) for p in (part, control_params[name])]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name} has other shapes in the U-Net than in the ControlNet: build both with the "
                "same fields."
            )
    return {**control_params, **shared}


Control = Callable[..., Any]
"""(params, x, time, cond, *, scale, key=None) -> {"down": ..., "mid": ...}."""


def control_from_module(module: ControlNet) -> Control:
    """The ControlNet as a pure function; a key means training, as for a ``Net``."""

    def control(params: Params, x, time, cond: Cond, *, scale=1.0, key=None):
        rngs = None if key is None else {"dropout": key}
        train = key is not None
        variables = {"params": params}
        return module.apply(variables, x, time, cond, scale=scale, train=train, rngs=rngs)

    return control


def with_control(net: Net, controls: Sequence[Control]) -> Net:
    """ControlNets and the net that they steer, as one Net; what several add is summed.

    Args:
        net: which takes cond["control"], such as a ``TextUNet``, or what this function gives.
        controls: each such as ``control_from_module`` gives.

    Returns:
        A Net with params {"net": ..., "control": (one for each)}, whose cond also has "hint", a
        tuple of [b, H, W, 3] in [0, 1], and may have "control_scale", a tuple of [b] (1 without).
        It reads the last ones of these tuples, and passes any before them on to ``net``.
    """
    count = len(controls)

    def controlled(params: Params, x, time, cond: Cond, *, key=None):
        own = {k: v for k, v in cond.items() if k not in ("hint", "control_scale")}
        read = {k: cond[k] for k in _READS if k in cond}
        hints = cond["hint"]
        scales = cond.get("control_scale", (1.0,) * len(hints))
        keys = [None] * (count + 1)
        if key is not None:
            keys = list(jax.random.split(key, count + 1))
        each = zip(
            controls, params["control"], hints[-count:], scales[-count:], keys[1:], strict=True
        )
        added = [
            control(own_params, x, time, read | {"hint": hint}, scale=scale, key=own_key)
            for control, own_params, hint, scale, own_key in each
        ]
        added += [cond["control"]] if "control" in cond else []
        total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *added)
        if len(hints) > count:
            own |= {"hint": hints[:-count], "control_scale": scales[:-count]}
        return net(params["net"], x, time, {**own, "control": total}, key=keys[0])

    return controlled
