r"""An LCM-LoRA of a Stable Diffusion checkpoint (Luo et al. 2023b), which draws in 4 steps.

python main.py --config=configs/checkpoints/lcm_lora.py --config.checkpoint=DIR \
        --config.data.name=image_folder/pictures --config.prompts="('a red house',)" --workdir=W
python main.py --mode=sample --workdir=W --config.prompt="a red house"
"""

from ml_collections import ConfigDict

from configs.checkpoints import lora

# What the authors adapt: every dense kernel and convolution of the levels and the middle.
TARGETS = r"/(down_\d+|mid|up_\d+)/.*kernel$"


def get_config() -> ConfigDict:
    config = lora.get_config()
    config.workdir = "runs/lcm_lora"
    # A row of build.few_step.methods.METHODS: one network, conditioned on nothing more.
    config.distill = "latent_consistency(levels=50, scale=7.5)"
    config.tuning = f"lora(rank=64, targets={TARGETS!r})"
    config.train.steps = 1000
    config.train.batch_size = 12
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.ema = "warmup(decay=0.95)"  # whose f is the target
    config.sampler.solver = "consistency()"
    config.sampler.grid = "consistency()"
    config.sampler.post = ("latent_consistency()",)
    config.sampler.end = "clean"
    config.sampler.steps = 4
    config.sampler.guidance_scale = 1.0  # what it learned is guided already
    return config
