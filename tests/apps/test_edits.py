"""What each edit reads and which slots of a drawing it fills, by values and without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.apps.edits import tiles as tiling
from diffusion_jax.apps.edits.image_to_image import image_to_image
from diffusion_jax.apps.edits.inpaint import inpaint
from diffusion_jax.apps.edits.tiles import cropped, tiles
from diffusion_jax.apps.edits.variation import slerp, variation
from diffusion_jax.apps.plan import Drawing, Generator, Geometry, Request, Sampler
from diffusion_jax.core import grids, process, schedules
from diffusion_jax.core.guidance.windows import Cut
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Prediction

PROCESS = process.Process(schedules.cosine(), process.vp)
GEOMETRY = Geometry((4, 6, 3), factor=2, multiple=4)
SAME = lambda x: x


def generator(geometry=GEOMETRY):
    return Generator(None, None, None, geometry, None, {})


def drawing(**slots):
    sampler = Sampler(SOLVERS["ddim"](), grids.uniform_log_snr(PROCESS, 10))
    plain = Drawing(
        {}, None, jnp.zeros((2, 4, 6, 3)), None, PROCESS, sampler, SAME, SAME, SAME, GEOMETRY,
        SAME, SAME, SAME,
    )  # fmt: skip
    return plain._replace(**slots)


@pytest.fixture
def picture(tmp_path):
    """8 x 12 pixels, a step of grey for each row; white in the last two columns of its mask."""
    rows = np.broadcast_to(20 * np.arange(8, dtype=np.uint8)[:, None], (8, 12))
    Image.fromarray(rows).save(tmp_path / "rows.png")
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 9:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return str(tmp_path / "rows.png"), str(tmp_path / "mask.png")


def test_geometry_between_pixels_and_latents():
    assert GEOMETRY.size == (8, 12)
    assert GEOMETRY.latent_shape((16, 10)) == (8, 5, 3)
    points = Geometry((2,))
    assert (points.size, points.latent_shape(())) == ((), (2,))


def test_image_to_image_reads_the_size_and_keeps_the_last_steps(picture):
    edit = image_to_image(picture[0], strength=0.3)
    own = edit.arrays(generator(), Request())
    assert own.shape == (8, 12, 3) and edit.sources == (picture[0],)
    np.testing.assert_allclose(own[:, 0, 0], np.arange(8) * 20 / 127.5 - 1, atol=1e-6)
    asked = edit.arrays(generator(GEOMETRY._replace(channels=1)), Request(size=(4, 6)))
    assert asked.shape == (4, 6, 1)
    before = drawing(encode=lambda pixels: 3 * pixels)
    after = edit.apply(before, own)
    np.testing.assert_array_equal(after.picture, 3 * own)
    np.testing.assert_array_equal(after.sampler.levels.log_snr, before.sampler.levels.log_snr[-3:])
    shares = {len(image_to_image("a", s).apply(before, own).sampler.levels.t) for s in (0.8, 1.0)}
    assert shares == {8, 10} and len(image_to_image("a").apply(before, own).sampler.levels.t) == 8
    for strength in (0, 1.01):
        with pytest.raises(ValueError, match="strength="):
            image_to_image("a", strength)


def test_inpainting_holds_cells_that_the_mask_does_not_touch_and_pastes_the_picture(picture):
    edit = inpaint(*picture, feather=1.0, repeats=3)
    arrays = edit.arrays(generator(), Request())
    assert edit.sources == picture and arrays["repeats"] == 3
    assert arrays["picture"].shape == (8, 12, 3)
    assert arrays["cells"][..., 0].tolist() == [[0, 0, 0, 0, 1, 1]] * 4
    np.testing.assert_allclose(arrays["share"][0, 8:, 0], [0, 0.5, 1, 1])
    standard = inpaint(*picture).arrays(generator(), Request())
    assert standard["repeats"] == 100
    np.testing.assert_allclose(standard["share"][0, 8:, 0], [0, 1 / 9, 2 / 9, 3 / 9], rtol=1e-6)

    batched = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), arrays)
    shrink = lambda pixels: pixels[:, ::2, ::2]
    once = lambda jump: lambda *given: jump(*given)._replace(aux={"around": 1})
    before = drawing(encode=shrink, around=once, paste=lambda pixels: 10 * pixels)
    after = edit.apply(before, batched)
    level = jax.tree.map(lambda leaf: leaf[3], before.sampler.levels)
    x = jnp.zeros((2, 4, 6, 3))
    predicted = after.around(lambda x, now, end=None: Prediction(x + 5.0, x))(x, level)
    wanted = np.where(batched["cells"] == 1, 5.0, shrink(batched["picture"]))
    np.testing.assert_allclose(predicted.x0, wanted, atol=1e-5)
    drawn = jnp.full((2, 8, 12, 3), 0.1)
    share, own = batched["share"], batched["picture"]
    np.testing.assert_allclose(
        after.paste(drawn), np.where(share == 0, own, share * 1.0 + (1 - share) * own), atol=1e-6
    )
    np.testing.assert_array_equal(after.paste(drawn)[:, :, :9], own[:, :, :9])
    solvers = []
    own_way = before._replace(resample=lambda solver: solvers.append(solver) or solver)
    repeated = edit.apply(own_way, batched).resample(before.sampler.solver)
    assert solvers == [before.sampler.solver] and repeated is not before.sampler.solver


@pytest.mark.parametrize(("feather", "repeats"), [(-1, 0), (0, -1)])
def test_inpainting_refuses_what_is_negative_and_points(picture, feather, repeats):
    with pytest.raises(ValueError, match="must be 0 or more"):
        inpaint(*picture, feather, repeats)
    with pytest.raises(ValueError, match="draws points"):
        inpaint(*picture, 0, 0).arrays(generator(Geometry((2,))), Request())


SLERP = jax.jit(slerp)


def test_the_way_between_noises_keeps_the_angle_and_the_norm():
    a, b = jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 3.0], [2.0, 0.0]])
    got = SLERP(a, b, jnp.array([1 / 3, 0.25]))
    turn = lambda share: (np.cos(share * np.pi / 2), np.sin(share * np.pi / 2))
    wanted = [3 * np.array(turn(1 / 3)), 2 * np.array(turn(0.25))[::-1]]
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_allclose(SLERP(a, b, jnp.ones(2)), b, atol=1e-6)
    np.testing.assert_array_equal(SLERP(a, b, jnp.zeros(2)), a)
    images = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 2))
    flat = SLERP(*images.reshape(2, 2, -1), jnp.array([0.2, 0.7]))
    turned = SLERP(*images, jnp.array([0.2, 0.7]))
    np.testing.assert_allclose(turned.reshape(2, -1), flat, atol=1e-5)
    # Of one direction the cosine may come out above 1, and the way is a line.
    many = jax.random.normal(jax.random.key(2), (300, 7))
    np.testing.assert_allclose(SLERP(many, many, jnp.full(300, 0.4)), many, rtol=1e-4)
    np.testing.assert_allclose(slerp(many, 3 * many, jnp.full(300, 0.5)), 2 * many, rtol=1e-4)


def test_a_variation_has_other_noise_for_each_seed_of_both():
    noise = lambda seed, request: variation(0.3, seed).arrays(generator(), request)[0]
    assert noise(0, Request()).shape == (4, 6, 3)
    assert noise(0, Request(size=(4, 8))).shape == (2, 4, 3)
    draws = [noise(seed, Request(seed=own)) for seed in (0, 1) for own in (0, 1)]
    assert len({draw.tobytes() for draw in draws}) == 4
    np.testing.assert_array_equal(
        noise(0, Request()), variation(0.3).arrays(generator(), Request())[0]
    )
    edit, start = variation(0.25, 3), jax.random.normal(jax.random.key(1), (1, 4, 6, 3))
    other, amount = edit.arrays(generator(), Request(seed=5))
    assert amount == np.float32(0.25)
    after = edit.apply(drawing(noise=start), (jnp.asarray(other[None]), jnp.asarray(amount[None])))
    np.testing.assert_allclose(
        after.noise, slerp(start, other[None], jnp.asarray(amount[None])), atol=1e-6
    )
    assert variation(0).arrays(generator(), Request())[1] == 0 and variation(1)
    for amount in (-0.1, 1.1):
        with pytest.raises(ValueError, match="is not in"):
            variation(amount)


def windows_of(monkeypatch, canvas, **settings):
    """What ``tiles`` cuts a canvas into: (canvas, window, strides, profile, round)."""
    seen = []
    monkeypatch.setattr(tiling, "covering", lambda *given: seen.append(given))
    tiles(**settings).apply(drawing(noise=jnp.zeros((1, *canvas, 3))), ())
    return seen[0]


@pytest.mark.parametrize(
    ("settings", "window", "strides", "goes_round"),
    [
        ({}, (4, 6), (2, 3), (False, False)),
        ({"overlap": 0.25, "wrap": "x"}, (4, 6), (3, 4), (False, True)),
        ({"size": 16, "overlap": 0.0, "wrap": "xy"}, (8, 8), (8, 8), (True, True)),
        ({"size": 40, "wrap": "y", "overlap": 0.95}, (9, 20), (1, 1), (True, False)),
    ],
)
def test_tiles_are_windows_of_latent_cells(monkeypatch, settings, window, strides, goes_round):
    got = windows_of(monkeypatch, (9, 31), **settings)
    assert got == ((9, 31), window, strides, tiling.hann, goes_round)


def test_tiles_refuse_what_does_not_fit():
    for wrong in ({"overlap": 1.0}, {"overlap": -0.1}, {"size": -4}, {"wrap": "z"}):
        with pytest.raises(ValueError, match=r"config\.edits: tiles\(size="):
            tiles(**wrong)
    with pytest.raises(ValueError, match="multiple of 4"):
        tiles(size=6).arrays(generator(), Request())
    with pytest.raises(ValueError, match="draws points"):
        tiles().arrays(generator(Geometry((2,))), Request())
    assert tiles(size=8).arrays(generator(), Request()) == ()


def test_a_windows_condition_is_cut_where_it_lies_on_the_canvas():
    cut = Cut(jnp.array([1, 2]), (2, 3), (4, 6))
    normal = np.random.default_rng(0).normal
    draw = lambda *shape: jnp.asarray(normal(size=shape), jnp.float32)
    on, twice = draw(1, 4, 6, 2), draw(1, 8, 12, 1)
    kept = {
        "tokens": draw(1, 4, 6), "wide": draw(1, 4, 12, 1),
        "tall": draw(1, 8, 6, 1), "other": draw(1, 5, 6, 1),
        "odd": draw(1, 4, 7, 1),
    }  # fmt: skip
    got = cropped({"on": on, "twice": twice, **kept}, cut, (4, 6))
    np.testing.assert_array_equal(got["on"], on[:, 1:3, 2:5])
    np.testing.assert_array_equal(got["twice"], twice[:, 2:6, 4:10])
    assert all(got[name] is leaf for name, leaf in kept.items())
    assert cropped(None, cut, (4, 6)) is None


def test_tiles_evaluate_the_network_in_each_window_with_its_part_of_the_condition():
    """The prediction is the condition, so the average over windows puts it together again."""
    hint = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 9, 3)), jnp.float32)
    before = drawing(noise=jnp.zeros((1, 4, 9, 3)))
    shapes = []

    def jump_of(cond, negative):
        shapes.append((cond["hint"].shape, negative["hint"].shape))
        return lambda x, now, end=None: Prediction(cond["hint"] - 2 * negative["hint"], x)

    network = tiles(size=8).apply(before, ()).network(jump_of)
    level = jax.tree.map(lambda leaf: leaf[3], before.sampler.levels)
    whole = network({"hint": hint}, {"hint": hint + 1})(before.noise, level)
    np.testing.assert_allclose(whole.x0, -hint - 2, atol=1e-5)
    assert set(shapes) == {((1, 4, 4, 3), (1, 4, 4, 3))}


@pytest.mark.parametrize(
    ("wrap", "seen"), [("", (3, 20)), ("x", (3, 36)), ("y", (9, 20)), ("xy", (9, 36))]
)
def test_a_decoder_sees_eight_cells_beyond_an_edge_that_goes_round(wrap, seen):
    shapes = []

    def decode(x):
        shapes.append(x.shape[1:3])
        return x.repeat(2, 1).repeat(2, 2)

    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 3, 20, 3)), jnp.float32)
    after = tiles(wrap=wrap).apply(drawing(noise=x, decode=decode), ())
    pixels = after.decode(x)
    np.testing.assert_array_equal(pixels, x.repeat(2, 1).repeat(2, 2))
    assert shapes == [seen]
    # Without a decoder there is nothing to see.
    shapes.clear()
    tiles(wrap=wrap).apply(
        drawing(noise=x, decode=decode, geometry=GEOMETRY._replace(factor=1)), ()
    ).decode(x)
    assert shapes == [(3, 20)]


def test_a_padded_decoder_reads_the_other_side():
    x = jnp.arange(5.0).reshape(1, 1, 5, 1)
    seen = []

    def decode(x):
        seen.append(x[0, 0, :, 0].tolist())
        return x.repeat(2, 1).repeat(2, 2)

    tiles(wrap="x").apply(drawing(noise=x, decode=decode), ()).decode(x)
    assert seen == [[0, 1, 2, 3, 4] * 3]


def test_what_is_not_said_of_a_request_a_sampler_or_a_generator():
    assert Request() == ("", "", None, 0, ())
    assert Geometry((4, 4, 3)) == ((4, 4, 3), 1, 1, 3)
    own = Sampler(None, None)
    assert (own.guided, own.end, own.contrast) == (True, None, 1.0)
    plain = generator()._asdict()
    off = {
        "process_of": None, "classes": 0, "reads_text": False, "networks": (), "name": "all",
        "examples": None, "origin": None,
    }  # fmt: skip
    assert {name: plain[name] for name in off} == off
