"""Networks that are told more numbers: a teacher's tree widens, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny_unet import quick

from diffusion_jax.models import MODELS
from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.models.unet.text_unet import TextUNet
from diffusion_jax.models.unet.unet import UNet
from diffusion_jax.train.start import widened

UNET = UNet(channels=16, channel_mults=(1,), num_res_blocks=1, num_classes=3, mid_attention=False)
TEXT = TextUNet(
    channels=16, channel_mults=(1,), num_res_blocks=1, depths=(1,), heads=(2,), mid_depth=0,
    out_channels=3, num_classes=3, group_channels=4,  # a norm of one would hear no shift
)  # fmt: skip
JOINT = MMDiT(
    width=16, depth=2, heads=2, out_channels=3, num_classes=3, pooled_features=5, max_side=4
)  # fmt: skip
PAIRS = {
    "mlp": (MLP(width=16, depth=1, num_classes=3), (4, 2)),
    "unet": (UNET, (4, 8, 8, 3)),
    "text_unet": (TEXT, (4, 8, 8, 3)),
    "dit": (DiT(width=16, depth=1, heads=2, out_channels=3, num_classes=3), (4, 8, 8, 3)),
    "mmdit": (JOINT, (4, 8, 8, 3)),
}
TEXTS = {"context": np.ones((4, 2, 5), np.float32)}
READ = {"text_unet": TEXTS, "mmdit": {**TEXTS, "pooled": np.ones((4, 5), np.float32)}}
SCALARS = ("end", "guidance_scale")


def _random(module, shape, cond, seed=0):
    """A tree without compiling its initialisation; but zeros where the scalars begin."""
    tree = jax.eval_shape(lambda: init_params(module, jax.random.key(0), shape, cond))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)
    for scalar in module.scalars:
        last = params["embed"][scalar]["dense_1"]
        params["embed"][scalar]["dense_1"] = jax.tree.map(np.zeros_like, last)
    return params


@pytest.mark.parametrize("name", PAIRS)
def test_a_student_starts_as_its_teacher_to_the_bit_and_then_hears(name):
    module, shape = PAIRS[name]
    student = module.clone(scalars=SCALARS)
    cond = {"label": jnp.array([0, 1, 2, 3]), **READ.get(name, {})}
    told = {**cond, "end": jnp.array([0.0, 3.0, 500.0, 900.0]), "guidance_scale": jnp.arange(4.0)}
    teacher = _random(module, shape, cond)
    fresh = _random(student, shape, told, 1)
    params = widened(fresh, teacher)
    assert set(params["embed"]) == set(teacher["embed"]) | set(SCALARS)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    x, time = jax.random.normal(jax.random.key(2), shape), jnp.array([10.0, 200.0, 600.0, 999.0])
    run = quick(net_from_module(student))
    want = quick(net_from_module(module))(teacher, x, time, cond)
    np.testing.assert_array_equal(run(params, x, time, told), want)

    for scalar in SCALARS:  # each is heard once its last kernel is not 0, by its own example alone
        heard = jax.tree.map(lambda leaf: leaf, params)
        last = heard["embed"][scalar]["dense_1"]
        last["kernel"] = 0.3 * jax.random.normal(jax.random.key(3), last["kernel"].shape)
        before = run(heard, x, time, told)
        after = run(heard, x, time, {**told, scalar: told[scalar].at[1].add(40.0)})
        assert np.abs(after - before)[1].max() > 1e-3
        assert_allclose(np.delete(after, 1, 0), np.delete(before, 1, 0), atol=1e-5)


def test_every_network_can_be_told():
    assert set(PAIRS) == set(MODELS)


def test_a_scalar_learns_from_the_first_step():
    module = MLP(width=16, depth=1, scalars=("end",))
    told = {"end": jnp.array([1.0, 5.0])}
    params = init_params(module, jax.random.key(0), (2, 2), told)
    assert not np.any(params["embed"]["end"]["dense_1"]["kernel"])
    params["dense_out"]["kernel"] += 0.1
    net = net_from_module(module)
    out = lambda params: jnp.sum(net(params, jnp.ones((2, 2)), jnp.ones(2), told) ** 2)
    gradient = jax.jit(jax.grad(out))(params)
    assert np.abs(gradient["embed"]["end"]["dense_1"]["kernel"]).max() > 0


def test_missing_scalars_and_strange_teachers_are_named():
    module = MLP(width=16, depth=1, scalars=("end",))
    with pytest.raises(ValueError, match="cond lacks 'end'"):
        init_params(module, jax.random.key(0), (2, 2), {})
    with pytest.raises(ValueError, match=r"cond has \['guidance_scale'\]"):
        cond = {"end": jnp.zeros(2), "guidance_scale": jnp.zeros(2)}
        init_params(module, jax.random.key(0), (2, 2), cond)
    fresh = {"a": {"kernel": jnp.zeros((2, 3))}}
    with pytest.raises(ValueError, match="'b' has no place"):
        widened(fresh, {"b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(3, 3\)"):
        widened(fresh, {"a": {"kernel": jnp.zeros((3, 3))}})
