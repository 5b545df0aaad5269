"""k-diffusion's samplers without the training-time dependencies that its __init__ imports."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any


def k_diffusion_sampling() -> Any:
    """k_diffusion.sampling, which needs one function of the package; None where it is absent."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            return None
        package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
        package.__path__ = list(spec.submodule_search_locations or [])
        setattr(utils, "append_dims", lambda x, ndim: x[(..., *(None,) * (ndim - x.ndim))])  # noqa: B010
        setattr(package, "utils", utils)  # noqa: B010
        sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")
