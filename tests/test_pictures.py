"""Pictures are whole, and show what they were given."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_every_frame_and_rests_on_the_last(tmp_path, channels):
    frames = [np.full((6, 5, channels), 40 * i, np.uint8) for i in range(5)]
    path = tmp_path / "way.gif"
    pictures.save_animation(path, frames, zoom=3, seconds=1.0)
    with Image.open(path) as image:
        assert image.n_frames == 5 and image.size == (15, 18)
        values, durations = [], []
        for i in range(5):
            image.seek(i)
            values.append(int(np.asarray(image.convert("L"))[0, 0]))
            durations.append(image.info["duration"])
    np.testing.assert_allclose(values, [0, 40, 80, 120, 160], atol=3)
    assert durations[-1] == durations[0] + 1000 == 1200
