"""What a single file says beside its weights: marks among its keys, texts of its header.

Web interfaces read tensors without elements, or of one, by their names: "v_pred" says that the
network predicts v, "ztsnr" that its table of levels ends at zero signal-to-noise ratio.  The
modelspec of Stability says the same in the header.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Marks(NamedTuple):
    """What is said of how the network was trained.

    Attributes:
        prediction_type: "epsilon" or "v_prediction"; None where nothing says so.
        zero_snr: whether the table of levels is rescaled to end at pure noise.
    """

    prediction_type: str | None = None
    zero_snr: bool = False


def marks_of(file: str, names: Iterable[str], metadata: Mapping[str, str]) -> Marks:
    """The marks of a file.

    Args:
        file: its name, for messages.
        names: of its tensors.
        metadata: texts of its header.

    Raises:
        ValueError: naming a mark of a model that is not read here.
    """
    names = set(names)
    if odd := sorted(name for name in names if _EDM.fullmatch(name)):
        raise ValueError(
            f"{file} holds {odd[0]}: its network predicts at EDM's noise levels, which single "
            "files of this kind are not read with; take a diffusers folder of it, or another one."
        )
    said = metadata.get(_SPEC, "")
    if said and said not in PREDICTIONS:
        raise ValueError(
            f"{file}: {_SPEC}={said!r} cannot be followed: only {', '.join(PREDICTIONS)} can; take "
            "another checkpoint."
        )
    prediction = "v_prediction" if "v_pred" in names else PREDICTIONS.get(said)
    layer = metadata.get("modelspec.encoder_layer", "").strip()
    if re.fullmatch("[2-9]", layer):
        warnings.warn(
            f"{file}: modelspec.encoder_layer={layer}: it was trained on text states of an "
            f"earlier layer, which --config.clip_skip={int(layer) - 1} reads",
            stacklevel=2,
        )
    return Marks(prediction, "ztsnr" in names)


def say_unread(file: str, rest: Iterable[str]) -> None:
    """Warn of tensors of no part, but for those that are known to say nothing."""
    odd = [name for name in rest if not _SILENT.match(name)]
    if odd:
        named = ", ".join(odd[:10]) + (f" and {len(odd) - 10} more" if len(odd) > 10 else "")
        warnings.warn(
            f"{file}: these tensors are of no part that is read, and are left aside: {named}",
            stacklevel=2,
        )


PREDICTIONS = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
}  # fmt: skip
"""modelspec's words -> diffusers'."""

_SPEC = "modelspec.prediction_type"
_EDM = re.compile(r"edm_(mean|std)|edm_vpred\.sigma_(min|max)")
# Averages of the weights, tables of the usual levels, and the marks above.
_SILENT = re.compile(
    r"model_ema\.|(betas|alphas_cumprod|alphas_cumprod_prev|logvar|scale_factor|lvlb_weights|v_pred"
    r"|ztsnr|denoiser\.sigmas|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+)$"
)
