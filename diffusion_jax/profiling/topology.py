"""Devices of a TPU slice that is not present, to compile for."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any

from diffusion_jax.profiling.chips import CHIPS, Chip, named

# Look neither for TPUs nor for the hosts of a pod, and let several compilers run at once.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def slice_of(name: str) -> tuple[Chip, list[Any]]:
    """The kind of chip, and the devices, one for each chip, of a name such as "v5e:4x4".

    Raises:
        ValueError: for an unknown name, or if libtpu is missing.
    """
    parts = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    tpus = [chip.name for chip in CHIPS if chip.kind.startswith("TPU")]
    if not parts or parts[1] not in tpus:
        raise ValueError(
            f"--topology={name} is unknown; write a chip, of {', '.join(tpus)}, and the sides of "
            "the slice, as v5e:4x4 or v5p:2x2x2"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is missing, the compiler for TPUs; run `pip install -r requirements-tpu.txt`, "
            "or take --platform=cuda"
        )
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies  # after the environment is set

    # A v4 chip counts as two devices, unless its cores are joined.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if parts[1] == "v4" else {}
    if math.prod(int(side) for side in parts[2].split("x")) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--topology={name} is no slice that libtpu knows: {reason}") from None
    return named(parts[1]), list(found.devices)
