from diffusion_jax.models.text.bert import Bert
from diffusion_jax.models.text.clip import ClipText
from diffusion_jax.models.text.t5 import T5Encoder

TEXT_ENCODERS = {"clip_text": ClipText, "t5": T5Encoder, "bert": Bert}
