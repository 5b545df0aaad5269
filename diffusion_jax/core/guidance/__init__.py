"""Guidance: turn a Denoiser and conditions into the Denoise that a sampler evaluates.

Three kinds of small functions, each of which composes with all others:

* **which predictions**: ``mix``, ``cfg``, ``chain``, ``autoguidance``, ``perturbed`` are weighted
  sums of predictions, for several conditions or by several models; a ``Pair`` (``pair``,
  ``between``) gives the weak and the strong prediction that a ``Rule`` (``linear``,
  ``cfg_plus_plus``, ``apg``, ``zero_star``, ``rescaled``) combines, by ``guide``;
* **at which levels**: any scale is a ``Weight``, a number, a traced array or a function of the
  level such as ``interval``;
* **measurements and bounds**: ``classifier``, ``reconstruction``, ``moment_matching`` ... wrap a
  Denoise and add the score of a likelihood; ``projected`` puts what is ``known`` into its x0;
  ``clip`` and ``dynamic_threshold`` bound it; ``tiled`` makes one of a larger canvas.

A change of x0 or of eps always moves the other, so that alpha·x0 + sigma·eps stays what it was
(see ``moves``): x itself, everywhere but under ``cfg_plus_plus``.
"""

from diffusion_jax.core.guidance.inverse import (
    dps,
    ho_variance,
    moment_matching,
    pseudo_inverse,
    reconstruction,
    unit_variance,
)
from diffusion_jax.core.guidance.mixing import (
    autoguidance,
    blend,
    cfg,
    chain,
    compose,
    condition,
    emptied,
    mix,
    perturbed,
    predictions,
)
from diffusion_jax.core.guidance.moves import classifier, move_score, move_x0
from diffusion_jax.core.guidance.named import ALWAYS_GUIDED, GUIDANCES, Guidance
from diffusion_jax.core.guidance.projection import agreeing, known, projected
from diffusion_jax.core.guidance.rules import (
    Pair,
    Rule,
    apg,
    between,
    cfg_plus_plus,
    guide,
    linear,
    pair,
    renoised,
    rescaled,
    zero_star,
)
from diffusion_jax.core.guidance.thresholds import POSTS, Transform, clip, dynamic_threshold
from diffusion_jax.core.guidance.weights import Weight, interval, sigma_interval, weight_at
from diffusion_jax.core.guidance.windows import Cut, Windows, tiled, tiled_by

__all__ = [
    "ALWAYS_GUIDED",
    "GUIDANCES",
    "POSTS",
    "Cut",
    "Guidance",
    "Pair",
    "Rule",
    "Transform",
    "Weight",
    "Windows",
    "agreeing",
    "apg",
    "autoguidance",
    "between",
    "blend",
    "cfg",
    "cfg_plus_plus",
    "chain",
    "classifier",
    "clip",
    "compose",
    "condition",
    "dps",
    "dynamic_threshold",
    "emptied",
    "guide",
    "ho_variance",
    "interval",
    "known",
    "linear",
    "mix",
    "moment_matching",
    "move_score",
    "move_x0",
    "pair",
    "perturbed",
    "predictions",
    "projected",
    "pseudo_inverse",
    "reconstruction",
    "renoised",
    "rescaled",
    "sigma_interval",
    "tiled",
    "tiled_by",
    "unit_variance",
    "weight_at",
    "zero_star",
]
