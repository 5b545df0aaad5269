"""What an adapter file's metadata, or PEFT's adapter_config.json beside it, says of its scale."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.convert.lora_modules import Module

CONFIG = "adapter_config.json"


class Told(NamedTuple):
    """Of one module.

    Attributes:
        given: alpha, or None.
        rank: of the settings, or None.
        rooted: whether alpha is divided by the root of the rank (Kalajdzievski 2023).
        on_input: whether (IA)^3 is of its inputs; None where nothing says so.
    """

    given: float | None = None
    rank: int | None = None
    rooted: bool = False
    on_input: bool | None = None

    def alpha(self, rank: int | None) -> float | None:
        """The alpha of alpha/rank·down·up."""
        if self.given is None or not self.rooted or rank is None:
            return self.given
        return self.given * rank**0.5

    @property
    def bare(self) -> float:
        """The factor of a change that has no rank of its own."""
        if self.given is None or not self.rank:
            return 1.0
        return self.given / (self.rank**0.5 if self.rooted else self.rank)


def told_of(path: Path, metadata: Mapping[str, str]) -> Callable[[Module], Told]:
    """What is said of each module.

    Args:
        path: the adapter's file.
        metadata: of its header; recent releases of diffusers write "lora_adapter_metadata".

    Raises:
        ValueError: if it is not JSON, or of other types.
    """
    settings = _settings(path, metadata)

    def told(module: Module) -> Told:
        own = {k: settings.get(f"{module.part}.{k}", settings.get(k)) for k in _FIELDS}
        alpha = own["alpha"] if own["lora_alpha"] is None else own["lora_alpha"]
        alpha = _matching(own["alpha_pattern"], module, alpha)
        rank = _matching(own["rank_pattern"], module, own["r"])
        for name, value, least in (("lora_alpha", alpha, None), ("r", rank, 1)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and (not number or (least and value < least)):
                raise ValueError(f"{path.name}: {name} = {value!r} of its settings is no number.")
        inputs, name = own["feedforward_modules"], f".{module.name}"
        ends = tuple(f".{x}" for x in inputs) if isinstance(inputs, list) else None
        return Told(
            None if alpha is None else float(alpha),
            rank,
            bool(own["use_rslora"]),
            None if ends is None else name.endswith(ends),
        )

    return told


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    said, text = "lora_adapter_metadata", metadata.get("lora_adapter_metadata")
    beside = path.parent / CONFIG
    if text is None and path.stem == "adapter_model" and beside.is_file():
        said, text = CONFIG, beside.read_text("utf-8", "replace")
    try:
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {said} is not JSON ({error}).") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name}: {said} is not a JSON object.")
    return settings


def _matching(patterns: Any, module: Module, otherwise: Any) -> Any:
    """The value of the last pattern that a module's name ends with."""
    for pattern, value in (patterns if isinstance(patterns, Mapping) else {}).items():
        if f".{module.part}.{module.name}".endswith("." + pattern.removeprefix("^")):
            otherwise = value
    return otherwise


_FIELDS = (
    "lora_alpha", "alpha", "alpha_pattern", "r", "rank_pattern", "use_rslora",
    "feedforward_modules",
)  # fmt: skip
