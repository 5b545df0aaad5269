"""Names of an earlier release, for one release more: each still works, and a sentence says the new.

They are looked up in the command line, before any config is read.
"""

from __future__ import annotations

PATHS = {
    "configs/stable_diffusion.py": "configs/sample.py",
    "configs/stable_diffusion_lora.py": "configs/checkpoints/lora.py",
    "configs/stable_diffusion_full.py": "configs/checkpoints/full.py",
    "configs/stable_diffusion_word.py": "configs/checkpoints/word.py",
    "configs/stable_diffusion_lcm_lora.py": "configs/checkpoints/lcm_lora.py",
}
"""Old path of a config -> new; ``configs/distill_NAME.py`` is ``configs/distill/NAME.py``."""

FIELDS = {
    "sampler.n": "n",
    "sampler.batch_size": "batch_size",
    "sampler.labels": "labels",
    "sampler.prompts": "prompts",
    "sampler.seed": "seed",
}
"""Of --mode=sample: old field -> new."""

_CONFIG, _FIELD = "--config=", "--config."


def renewed(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line in today's names, and a sentence for each old one in it."""
    sampling = "--mode=sample" in argv
    found: list[str] = []
    words = [_path(word, found) for word in argv]
    # A config of training has these fields under the old names.
    if sampling and not any(w.startswith(_CONFIG) and not w.endswith("sample.py") for w in words):
        words = _edits([_field(word, found) for word in words], found)
    return words, found


def _path(word: str, found: list[str]) -> str:
    if not word.startswith(_CONFIG):
        return word
    folder, _, name = word.removeprefix(_CONFIG).rpartition("configs/")
    old = f"configs/{name}"
    new = PATHS.get(old, old)
    if name.startswith("distill_"):
        new = f"configs/distill/{name.removeprefix('distill_')}"
    if new != old:
        found.append(f"{old} is now {new}")
    return f"{_CONFIG}{folder}{new}" if new != old else word


def _field(word: str, found: list[str]) -> str:
    name, equals, value = word.removeprefix(_FIELD).partition("=")
    if not word.startswith(_FIELD) or name not in FIELDS:
        return word
    found.append(f"--config.{name} is now --config.{FIELDS[name]}")
    return f"{_FIELD}{FIELDS[name]}{equals}{value}"


def _edits(words: list[str], found: list[str]) -> list[str]:
    """``image``, ``strength``, ``control`` and ``control_image`` as ``edits``."""
    values, rest = {}, []
    for word in words:
        name, _, value = word.removeprefix(_FIELD).partition("=")
        old = word.startswith(_FIELD) and name in ("image", "strength", "control", "control_image")
        if old:
            values[name] = value
        else:
            rest.append(word)
    edits = []
    if "image" in values:
        edits.append(f"image_to_image({values['image']!r}, {values.get('strength', '0.8')})")
    networks, hints = (_listed(values.get(name, "")) for name in ("control", "control_image"))
    for network, hint in zip(networks, hints, strict=False):
        path, colon, scale = network.rpartition(":")
        edits.append(f"control({path or network!r}, {hint!r}, {scale if colon else '1.0'})")
    if not edits:
        return words
    flag = f"{_FIELD}edits={tuple(edits)!r}"
    found.append(f"{', '.join(f'--config.{name}' for name in values)} is now {flag}")
    return [*rest, flag]


def _listed(text: str) -> list[str]:
    return [part.strip(" '\"") for part in text.strip("()").split(",") if part.strip(" '\"")]
