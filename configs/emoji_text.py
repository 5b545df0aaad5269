"""Emoji at 64 pixels from their names, by diffusion in the latents of configs/emoji_autoencoder.py.

python main.py --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
python scripts/encode_latents.py --workdir=runs/emoji_autoencoder --data=noto_emoji --per_channel
python main.py --config=configs/emoji_text.py --workdir=runs/emoji_text
"""

from ml_collections import ConfigDict

from configs import emoji_text_pixel


def get_config() -> ConfigDict:
    config = emoji_text_pixel.get_config()
    config.data.name = "latents/noto_emoji"
    config.data.image_size = (64, 64)
    # Half of the emoji are persons in five skin tones: flags and fruit shall not be rare by that.
    config.data.balance = r"(medium-)?(light|dark|medium) skin tone|\b(wo)?m[ae]n\b|\bperson\b"
    config.model.autoencoder = "runs/emoji_autoencoder"
    config.model.text_unet.patch = 1  # latents are 16x16 already
    config.train.steps = 4500
    config.train.checkpoint_every = 750
    config.train.sample_every = 1500
    return config
