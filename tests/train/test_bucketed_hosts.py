"""Aspect buckets on several processes: at each step all take the same one, each its own part."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from diffusion_jax.data.prepare import Options, prepare
from diffusion_jax.train.checkpoint import restore_params

pytestmark = pytest.mark.whole

STEPS = 12
SHAPES = [(10, 21)] * 9 + [(14, 13)] * 8 + [(30, 16)] * 7  # of the pictures, (height, width)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of one colour each, which tells their number."""
    root = tmp_path_factory.mktemp("sets")
    (root / "files").mkdir()
    for i, (height, width) in enumerate(SHAPES):
        Image.new("RGB", (width, height), (8 * i, 0, 255)).save(root / "files" / f"{i:02}.png")
    options = Options(folder=str(root / "files"), set_name="many", test_fraction=0.0)
    prepare("image_folder", root, options)
    return root


def _losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_processes_train_on_buckets_as_one_does(root, tmp_path):
    mesh = json.dumps({"data": 1, "fsdp": 2})  # which splits the batch, as data does
    options = [f"--steps={STEPS}", f"--buckets={root}", "--mesh", mesh]
    started = tiny.start_hosts(2, tmp_path / "two", *options)
    whole = []
    alone = tiny.run(tmp_path / "one", STEPS, tiny.bucketed(root, seen=whole))
    parts = []
    for done in (tiny.end(process, 120) for process in started):
        assert done.returncode == 0, done.stderr
        parts.append(json.loads(done.stdout.splitlines()[-1])["seen"])
    # The first two are looked at for their shapes, before the first step.
    for first, second, both in zip(*parts, whole, strict=False):
        assert first[0] == second[0] == both[0]
        assert first[1] + second[1] == both[1] and not set(first[1]) & set(second[1])
    assert len({tuple(size) for size, _ in whole[:STEPS]}) == 3
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)
    for which, wanted in (("params", alone.params), ("ema", alone.ema)):
        found = restore_params(tmp_path / "two", which, STEPS)
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        tiny.jax.tree.map(close, found, wanted)
