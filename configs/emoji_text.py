"""Emoji at 64 pixels from their names, by diffusion in the codes of configs/emoji_autoencoder.py.

python main.py --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
python scripts/encode_latents.py --workdir=runs/emoji_autoencoder --data=noto_emoji
python main.py --config=configs/emoji_text.py --workdir=runs/emoji_text
"""

from ml_collections import ConfigDict

from configs import emoji_text_pixel


def get_config() -> ConfigDict:
    config = emoji_text_pixel.get_config()
    config.data.name = "latents/noto_emoji"
    config.data.image_size = (64, 64)
    config.model.autoencoder = "runs/emoji_autoencoder"
    config.model.text_unet.patch = 1  # codes are 16x16 already
    return config
