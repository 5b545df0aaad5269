"""Improved MeanFlow (Geng et al. 2025b), from a diffusion model's weights.

python main.py --config=configs/distill/improved_mean_flow.py --config.teacher=DIR --workdir=W
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = (
        "improved_mean_flow(scale=1.0, mean=0.5, std=1.2, same=0.5, to_clean=0.25, "
        "follow='teacher', distance='pseudo_huber')"
    )
    config.optimizer.learning_rate = 3e-4  # the target is a derivative of the network itself
    config.sampler.grid = "karras(s_min=0.6, s_max=20.0)"  # noisier levels are rarely trained
    return config
