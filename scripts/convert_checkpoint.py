"""Write a Stable Diffusion checkpoint as a folder of the diffusers layout, LoRAs merged if wanted.

python scripts/convert_checkpoint.py --source=model.safetensors --tokenizers=DIR --out=model
python scripts/convert_checkpoint.py --source=model --lora=style.safetensors:0.8 --out=styled
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging

from diffusion_jax import ending

FLAGS = flags.FLAGS
flags.DEFINE_string("source", None, "Folder or .safetensors file to read.", required=True)
flags.DEFINE_string("out", None, "Folder to make.", required=True)
flags.DEFINE_list("lora", [], "Files to merge, each with :SCALE if it is not 1.")
flags.DEFINE_list("tokenizers", [], "Folders of tokenizers, which a single file lacks.")
flags.DEFINE_string("prediction_type", "", "Of a single file of 2.x: v_prediction or epsilon.")
flags.DEFINE_string("variant", "", "Of the weights' files, such as fp16.")
flags.DEFINE_enum("dtype", "", ["", "float32", "float16", "bfloat16"], "Of weights; their own.")


def main(argv: list[str]) -> None:
    """Convert; a bad request is one sentence, code 2."""
    import jax.numpy as jnp  # here, so that --help is quick

    from diffusion_jax.build.checkpoint.additions import file_and_scale, with_loras
    from diffusion_jax.convert.checkpoint_folder import write_checkpoint
    from diffusion_jax.convert.lora import lora_file
    from diffusion_jax.convert.stable_diffusion import find_tokenizers, read_checkpoint
    from diffusion_jax.convert.textual_inversion import bundled_words

    file_of = lambda spec: lora_file(file_and_scale(spec)[0])
    del argv
    logging.set_verbosity(logging.WARNING)
    with ending.sentences():
        if Path(FLAGS.out).exists():  # before minutes of reading
            raise ValueError(f"--out={FLAGS.out} exists; name a folder that does not")
        read = read_checkpoint(FLAGS.source, FLAGS.prediction_type or None, FLAGS.variant or None)
        tokenizers = find_tokenizers(FLAGS.tokenizers, read)
        dtype = jnp.dtype(FLAGS.dtype) if FLAGS.dtype else None
        out = write_checkpoint(FLAGS.out, with_loras(read, FLAGS.lora), tokenizers, dtype)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        for file in map(file_of, FLAGS.lora):
            if names := ", ".join(word.name for word in bundled_words(file)):
                print(f"note: the words of {file} are no weights, and are left aside: {names}")
        print(f"{out} holds the checkpoint, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    app.run(main)
