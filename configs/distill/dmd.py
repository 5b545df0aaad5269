"""Distribution matching (Yin et al. 2024a): one step, with regression on the teacher's pairs.

python main.py --config=configs/distill/dmd.py --config.teacher=runs/mnist --workdir=runs/dmd
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.distill = (
        "distribution_matching(ratio=1, scale=1.0, fake=3.0, regression=0.02, "
        "distance='pseudo_huber')"
    )
    config.optimizer.learning_rate = 3e-4
    config.sampler.steps = 1
    return config
