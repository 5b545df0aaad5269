"""Latent adversarial distillation (Sauer et al. 2024), on the teacher's features.

python main.py --config=configs/distill/ladd.py --config.teacher=runs/mnist --workdir=runs/ladd
"""

from ml_collections import ConfigDict

from configs.distill import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    # mean: log(sigma/alpha) of the noise on what the discriminator sees; less for fewer pixels.
    config.distill = (
        "latent_adversarial(ratio=1, steps=4, scale=1.0, distillation=0.3, high=0.5, mean=-2.0, "
        "discriminator=10.0)"
    )
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0  # momentum makes the two networks oscillate
    config.sampler.steps = 4  # the method's steps
    return config
