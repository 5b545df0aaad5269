"""The import rule of docs/architecture.md: which room may import from which."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = (
    "core", "models", "recipes", "apps", "train", "evaluate", "data", "convert", "profiling"
)  # fmt: skip

# room -> the rooms (or modules) of ours that it may import; itself too, but for configs.
ALLOWED = {
    "core": set(),
    "models": {"core.types"},
    "recipes": {"core"},
    "apps": {"core", "pictures"},
    "train": {"core", "files", "profiling"},
    "profiling": set(),
    "evaluate": {"core", "files"},
    "data": set(),
    "convert": {"core", "models", "files"},
    "spec": set(),
    "backend": set(),
    "files": set(),
    "ending": set(),
    "pictures": {"files", "data.images", "data.picture_files", "data.pixels"},
    "jobs": {*ROOMS, "build", "spec", "files", "ending", "pictures", "configs.sample"},
    "build": {*ROOMS, "spec", "files", "pictures", "configs.base"},
    "configs": {
        "configs.base",
        "configs.distill.defaults",
        "configs.emoji_text_pixel",
        "configs.sample",
        "configs.checkpoints.lora",
    },
    "command": {"jobs", "ending", "configs", "configs.old_names"},
    "main": {"command"},
    "scripts": {
        *ROOMS,
        "build",
        "spec",
        "files",
        "ending",
        "pictures",
        "jobs",
        "configs",
        "main",
        "tests.stable_diffusion",
    },
}

# Inside of build: part -> the parts that it may import.  Its wings are few_step and checkpoint.
WITHIN_BUILD = {
    "process": set(),
    "weights": set(),
    "buckets": set(),
    "conditioning": set(),
    "training": {"buckets", "conditioning"},
    "first_stage": {"weights", "buckets", "training"},
    "experiment": {"process", "conditioning", "first_stage", "buckets", "training"},
    "sampling": set(),
    "evaluation": {"process", "experiment"},
    "few_step": {"experiment", "first_stage", "weights"},
    "runs": {"experiment", "few_step", "weights"},
    "releases": {"first_stage", "runs", "weights"},
    "checkpoint": {
        "experiment",
        "training",
        "buckets",
        "conditioning",
        "few_step",
        "runs",
        "releases",
    },
    "edits": {"checkpoint"},
    "generator": {"checkpoint", "first_stage", "runs"},
}

# room -> all that it may import from outside, beside the standard library.
OUTSIDE_ONLY = {
    "core": {"jax", "numpy", "scipy", "jaxtyping", "diffrax"},
    "spec": set(),
    "configs": {"ml_collections"},
}

# package -> the only rooms that may import it.
OWNERS = {
    "flax": {"models"},
    "tensorflow_datasets": {"data", "scripts"},
    "grain": {"data"},
    "torch": {"scripts"},
    "diffusers": {"scripts"},
    "transformers": {"scripts"},
    "tokenizers": {"data"},
    "sentencepiece": {"data"},
    "tensorflow": set(),
}


def _imports(path, module):
    """Dotted names that a file imports; ``from a import b`` gives a.b (b may be a module)."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            parent = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (parent, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _ours(name):
    """'diffusion_jax.core.types.like' -> 'core.types.like', 'configs.base' -> itself, else None."""
    if name == "diffusion_jax" or name.startswith("diffusion_jax."):
        return name.removeprefix("diffusion_jax").removeprefix(".")
    return name if name.split(".")[0] in ("configs", "main", "scripts", "tests") else None


def _within(name, allowed):
    return any(name == a or name.startswith(a + ".") for a in allowed)


def _violations(path, module):
    room, *inner = (_ours(module) or "").split(".")
    part = inner[0] if room == "build" and inner else ""
    for name in _imports(path, module):
        ours, package = _ours(name), name.split(".")[0]
        if ours is not None:
            if part and _within(ours, {"build"}):
                other = ours.split(".")[1]
                if other not in WITHIN_BUILD[part] | {part}:
                    yield f"{module} imports {name}: it may import {sorted(WITHIN_BUILD[part])}"
            if room and not _within(ours, ALLOWED[room] | ({room} - {"configs"})):
                yield f"{module} imports {name}: {room} may import {sorted(ALLOWED[room])}"
            if not room and not _within(ours, {"backend"}):
                yield f"{module} imports {name}: the package itself imports nothing of ours"
            continue
        if package in sys.stdlib_module_names:
            continue
        if room in OUTSIDE_ONLY and package not in OUTSIDE_ONLY[room]:
            yield f"{module} imports {name}: {room} may import {sorted(OUTSIDE_ONLY[room])}"
        if package in OWNERS and room not in OWNERS[package]:
            yield f"{module} imports {name}: only {sorted(OWNERS[package])} may"


def _names(path):
    return set(_imports(path, _module(path)))


FILES = sorted(
    path
    for top in ("diffusion_jax", "configs", "scripts")
    for path in (ROOT / top).rglob("*.py")
    if path.is_file()
) + [path for path in (ROOT / "main.py",) if path.is_file()]


UPPER = ("apps.", "build.", "jobs.")


def test_there_is_something_to_check():
    assert {"core", "models", "train"} <= {(_ours(_module(p)) or "").split(".")[0] for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_what_its_room_may(path):
    module = _module(path)
    room = (_ours(module) or "").split(".")[0]
    assert not room or room in ALLOWED, f"{module}: give the new room {room!r} a line in ALLOWED"
    assert not list(_violations(path, module))


@pytest.mark.parametrize(
    ("where", "line", "forbidden"),
    [
        ("diffusion_jax.core.process", "from diffusion_jax import models", True),
        ("diffusion_jax.core.process", "import flax.linen as nn", True),
        ("diffusion_jax.core.process", "from .. import train", True),
        ("diffusion_jax.core.process", "from .types import like", False),
        ("diffusion_jax.core.process", "import optax", True),
        ("diffusion_jax.models.unet.unet", "from diffusion_jax.core import types", False),
        ("diffusion_jax.models.unet.unet", "from diffusion_jax.core.types import like", False),
        ("diffusion_jax.models.unet.unet", "from diffusion_jax.core.process import vp", True),
        (
            "diffusion_jax.models.unet.unet",
            "def f():\n    from diffusion_jax.core import process",
            True,
        ),
        ("diffusion_jax.recipes.diffusion", "import diffusion_jax.models.unet.unet", True),
        ("diffusion_jax.recipes.diffusion", "from flax import linen", True),
        ("diffusion_jax.train.loop", "from diffusion_jax.recipes import diffusion", True),
        ("diffusion_jax.data.sources", "from diffusion_jax.core import process", True),
        ("diffusion_jax.build.process", "from diffusion_jax.build import experiment", True),
        (
            "diffusion_jax.build.few_step.methods",
            "from diffusion_jax.build import checkpoint",
            True,
        ),
        ("diffusion_jax.build.generator", "from diffusion_jax.build import runs", False),
        ("diffusion_jax.build.checkpoint.tuning", "from diffusion_jax import jobs", True),
        ("configs.mnist", "from configs import base", False),
        ("configs.mnist", "from configs import toy2d", True),
        ("configs.mnist", "import jax", True),
        ("diffusion_jax.command", "from diffusion_jax import jobs", False),
        ("main", "from diffusion_jax import jobs", True),
    ],
)
def test_the_rule_catches(tmp_path, where, line, forbidden):
    path = tmp_path / "file.py"
    path.write_text(line + "\n")
    assert bool(list(_violations(path, where))) == forbidden


def test_there_is_one_sampler():
    """Outside of the maths and of training, one file walks from noise to pixels."""
    upper = [path for path in FILES if (_ours(_module(path)) or "").startswith(UPPER)]
    walking = [path for path in upper if "diffusion_jax.core.sampling.sample" in _names(path)]
    assert [str(path.relative_to(ROOT)) for path in walking] == ["diffusion_jax/apps/draw.py"]
    kinds = [path for path in upper if '"checkpoint" in config' in path.read_text()]
    assert not kinds, "a source's kind is found out in build/generator.py alone"
