"""Tensor parallelism: pairs of layers, the first split by outputs, the second by inputs.

So between the two each device holds its own channels, or heads, and one sum over devices follows
the second (Shoeybi et al. 2019, section 3).  Plain data, which ``train.sharding`` applies.
"""

from __future__ import annotations

Partition = tuple[tuple[str, tuple[str | None, ...]], ...]
"""(regex over parameter paths, axis of each dimension)."""

_T = "tensor"

# Blocks stacked by ``scan_blocks`` have one more leading axis.
_UNET: Partition = (
    (r"/block_\d+/attention/(query|key|value)/kernel$|mid/attention/(query|key|value)/kernel$",
     (None, _T)),
    (r"/blocks_\d+_\d+/attention/(query|key|value)/kernel$", (None, None, _T)),
    (r"/block_\d+/attention/out/kernel$|mid/attention/out/kernel$", (_T, None)),
    (r"/blocks_\d+_\d+/attention/out/kernel$", (None, _T, None)),
    (r"/block_\d+/res/conv_0/kernel$|mid/res_\d/conv_0/kernel$", (None, None, None, _T)),
    (r"/blocks_\d+_\d+/res/conv_0/kernel$", (None, None, None, None, _T)),
    (r"/block_\d+/res/conv_1/kernel$|mid/res_\d/conv_1/kernel$", (None, None, _T, None)),
    (r"/blocks_\d+_\d+/res/conv_1/kernel$", (None, None, None, _T, None)),
)  # fmt: skip

# A gated MLP's first layer has values and gates side by side; a split moves them once.
_TEXT_UNET: Partition = (
    (r"/(self|cross)_attention/(query|key|value)/kernel$", (None, _T)),
    (r"/(self|cross)_attention/out/kernel$", (_T, None)),
    (r"/mlp/in/kernel$", (None, _T)),
    (r"/mlp/out/kernel$", (_T, None)),
    (r"/res(_\d)?/conv_0/kernel$", (None, None, None, _T)),
    (r"/res(_\d)?/conv_1/kernel$", (None, None, _T, None)),
)

# Including the discriminator of its training.
_AUTOENCODER: Partition = (
    (r"/attention/(query|key|value)/kernel$", (None, _T)),
    (r"/attention/out/kernel$", (_T, None)),
    (r"/(res_\d|(down|up)_\d+_block_\d+)/conv_0/kernel$", (None, None, None, _T)),
    (r"/(res_\d|(down|up)_\d+_block_\d+)/conv_1/kernel$", (None, None, _T, None)),
    (r"discriminator/conv_[02468]/kernel$", (None, None, None, _T)),
    (r"discriminator/conv_[13579]/kernel$", (None, None, _T, None)),
)

# All networks with ``models.text.blocks``.
_TRANSFORMER: Partition = (
    (r"(^|/)layer_\d+/attention/(query|key|value)/kernel$", (None, _T)),
    (r"(^|/)layer_\d+/attention/out/kernel$", (_T, None)),
    (r"(^|/)layer_\d+/mlp/(in|gate|up)/kernel$", (None, _T)),
    (r"(^|/)layer_\d+/mlp/out/kernel$", (_T, None)),
)

# Image and text, each with its own layers, and the image's second attention.
_MMDIT: Partition = (
    (r"/(image|context|second)_qkv/(query|key|value)/kernel$", (None, _T)),
    (r"/(image|context|second)_out/kernel$", (_T, None)),
    (r"/(image|context)_mlp/in/kernel$", (None, _T)),
    (r"/(image|context)_mlp/out/kernel$", (_T, None)),
)

PARTITIONS: dict[str, Partition] = {
    "unet": _UNET,
    "text_unet": _TEXT_UNET,
    "controlnet": _TEXT_UNET,
    "autoencoder_kl": _AUTOENCODER,
    "autoencoder_vq": _AUTOENCODER,
    "dit": _TRANSFORMER,
    "mmdit": _MMDIT,
    "clip_text": _TRANSFORMER,
    "clip_image": _TRANSFORMER,
    "t5": _TRANSFORMER,
    "bert": _TRANSFORMER,
}
