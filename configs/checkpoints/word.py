r"""A new word for one thing, its vectors alone trained: textual inversion (Gal et al. 2023).

python main.py --config=configs/checkpoints/word.py --config.checkpoint=DIR \
        --config.data.name=image_folder/pets --config.tuning="word('<pet>', start_from='cat')" \
        --config.prompt="a photo of <pet>" --workdir=W
python main.py --mode=sample --workdir=W --config.prompt="<pet> on the moon"
python main.py --mode=sample --config.checkpoint=DIR \
        --config.embeddings="('W/word.safetensors',)" --config.prompt="<pet> on the moon"
"""

from ml_collections import ConfigDict

from configs.checkpoints import lora


def get_config() -> ConfigDict:
    config = lora.get_config()
    config.workdir = "runs/word"
    config.tuning = "word('<thing>', start_from='object')"  # and vectors=2 for two tokens of it
    config.prompt = "a photo of <thing>"
    config.train.steps = 1000
    config.optimizer.learning_rate = 5e-3
    config.optimizer.weight_decay = 0.0
    return config
