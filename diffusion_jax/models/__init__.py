"""Networks by name."""

from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.models.unet.text_unet import TextUNet
from diffusion_jax.models.unet.unet import UNet

MODELS = {"dit": DiT, "mmdit": MMDiT, "unet": UNet, "mlp": MLP, "text_unet": TextUNet}
