"""Networks by name."""

from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.text_unet import TextUNet
from diffusion_jax.models.unet import UNet

MODELS = {"unet": UNet, "mlp": MLP, "text_unet": TextUNet}
