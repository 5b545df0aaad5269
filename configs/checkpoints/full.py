r"""All weights of the denoiser of whatever draws; of a checkpoint also DreamBooth's.

python main.py --config=configs/checkpoints/full.py --config.checkpoint=DIR \
        --config.data.name=image_folder/pets --workdir=W     # captions; or one --config.prompt
python main.py --mode=sample --workdir=W --config.prompt="a cat on the moon"
python main.py --mode=sample --config.checkpoint=W/checkpoint_0000500 \
        --config.prompt="a cat on the moon"
"""

from ml_collections import ConfigDict

from configs.checkpoints import lora


def get_config() -> ConfigDict:
    config = lora.get_config()
    config.workdir = "runs/full"
    config.tuning = "full()"  # "full(dtype='float16')" halves what is left
    config.optimizer.learning_rate = 1e-5
    config.loss.condition_dropout = 0.1  # the empty prompt, from which guidance leads away
    config.ema = "warmup(decay=0.999)"
    return config
