"""Data sets and their batches.  No other part of the package reads image files.

spec = DataSpec("mnist5k", batch_size=128, image_size=(32, 32))
for batch in batches(make_dataset(spec), start_step=0):
    ...  # {"image": float32 [128, 32, 32, 1] in [-1, 1], "label": int32 [128]}
"""

from diffusion_jax.data.catalog import DataMissing
from diffusion_jax.data.pipeline import (
    Batches,
    batches,
    load_captions,
    load_images,
    make_dataset,
)
from diffusion_jax.data.pixels import to_uint8, to_unit
from diffusion_jax.data.sources import Info, info
from diffusion_jax.data.spec import DataSpec

__all__ = [
    "Batches",
    "DataMissing",
    "DataSpec",
    "Info",
    "batches",
    "info",
    "load_captions",
    "load_images",
    "make_dataset",
    "to_uint8",
    "to_unit",
]
