"""Consistency distillation (Song et al. 2023) of a teacher, guided if scale is above 1.

python main.py --config=configs/distill/cd.py --config.teacher=runs/mnist --workdir=runs/cd
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    # The paper has Heun's solver and LPIPS or squares; on digits these halved the distance.
    config.distill = (
        "consistency_distillation(levels=18, scale=1.0, solver='ddim', distance='pseudo_huber')"
    )
    return config
