"""Networks by name."""

from diffusion_jax.models.dit import DiT
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.text_unet import TextUNet
from diffusion_jax.models.unet import UNet

MODELS = {"dit": DiT, "mmdit": MMDiT, "unet": UNet, "mlp": MLP, "text_unet": TextUNet}
