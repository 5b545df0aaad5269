"""Draw from an exported sampler: python run_exported.py SAMPLER OUT.npy SEED SCALE LABEL ..."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export  # pip install jax flatbuffers, and safetensors if the params lie beside

path, out, seed, scale, *labels = sys.argv[1:]
sampler = jax.jit(export.deserialize(bytearray(Path(path).read_bytes())).call)
arguments = [jax.random.PRNGKey(int(seed)), np.array(labels, np.int32), np.float32(scale)]
if json.loads(Path(path + ".json").read_text())["params"] == "beside":
    from safetensors.numpy import load_file

    arguments.insert(0, load_file(path + ".safetensors"))
np.save(out, sampler(*arguments))
