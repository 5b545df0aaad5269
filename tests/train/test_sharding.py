import json

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from diffusion_jax.train import optimizer, sharding
from diffusion_jax.train.checkpoint import restore_params, steps
from diffusion_jax.train.state import TrainState, abstract_state

MESH = AbstractMesh((2, 4, 1, 1), sharding.AXES)
WIDE = AbstractMesh((1, 2, 4, 1), sharding.AXES)


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def _specs(tree):
    return jax.tree.map(lambda s: s.spec, tree)


@pytest.mark.parametrize(
    ("wanted", "n", "shape"),
    [
        ([-1, 1, 1, 1], 8, (8, 1, 1, 1)),
        ([2, -1, 2, 1], 8, (2, 2, 2, 1)),
        ([1, 4, 2, 1], 8, (1, 4, 2, 1)),
        ([-1, 8, 1, 1], 8, (1, 8, 1, 1)),
        ([2, 1, 1, -1], 8, (2, 1, 1, 4)),
    ],
)
def test_minus_one_takes_the_rest(wanted, n, shape):
    assert sharding._filled(wanted, n) == shape


@pytest.mark.parametrize(
    "wanted",
    [[3, -1, 1, 1], [2, 2, 1, 1], [-1, -1, 1, 1], [0, 1, 1, 1], [-1, 16, 1, 1], [-1, 1, 1, 3]],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(wanted):
    with pytest.raises(ValueError, match=r"config\.mesh \(data=.*\)"):
        sharding._filled(wanted, 8)


def test_axes_have_known_names():
    with pytest.raises(ValueError, match=r"config\.mesh\.model is no axis; known are data, fsdp"):
        sharding.make_mesh({"model": 1})
    assert dict(sharding.make_mesh({"data": -1}).shape) == dict.fromkeys(sharding.AXES, 1)
    # XLA's partitioner chooses what is not said.
    assert set(sharding.make_mesh().axis_types) == {AxisType.Auto}


def test_the_largest_dimension_that_divides_is_split():
    params = {
        "conv": _shape(3, 3, 64, 128),
        "odd": _shape(1023, 64),
        "none": _shape(333, 7),
        "small": _shape(64),
    }
    expected = {"conv": P(None, None, None, "fsdp"), "odd": P(None, "fsdp"), "none": P()}
    assert _specs(sharding.of_params(params, MESH)) == {**expected, "small": P()}


def test_the_first_rule_that_matches_wins():
    params = {"attn": {"kernel": _shape(64, 64), "bias": _shape(64)}, "mlp": _shape(64, 64)}
    rules = [("attn/kernel", (None, "tensor")), ("attn", ()), ("mlp", [["fsdp", "tensor"], None])]
    assert _specs(sharding.of_params(params, WIDE, rules)) == {
        "attn": {"kernel": P(None, "tensor"), "bias": P()},
        "mlp": P(("fsdp", "tensor"), None),
    }


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (("tensor", None, None), "fewer dimensions"),
        (("expert",), "'expert' is no axis"),
        ((None, "tensor"), "4 devices do not divide 6"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_by_name(axes, says):
    with pytest.raises(ValueError, match=rf"config\.mesh\.rules: \('w'.* matches net/w .*{says}"):
        sharding.of_params({"net": {"w": _shape(8, 6)}}, WIDE, [("w", axes)])


def test_moments_and_averages_lie_where_their_parameter_lies():
    batch = {"x": _shape(16, 64)}
    state = abstract_state(tiny.RECIPE, tiny.optimiser(), tiny.EMA, batch)
    places = sharding.of_state(state, MESH, [("out/kernel", ("fsdp",))])
    params = _specs(places.params)
    assert params["net"]["hidden"]["kernel"] == P("fsdp")
    _, (adam, _, schedule) = places.opt_state
    assert _specs(adam.mu) == _specs(adam.nu) == _specs(places.ema) == params
    assert schedule.count.spec == adam.count.spec == places.step.spec == P()


def test_players_of_one_network_lie_alike_with_their_moments():
    """A rule is a regex over paths, whoever's network it is; turns change nothing of it."""
    net = {"attention": {"kernel": _shape(64, 64)}, "out": {"kernel": _shape(64, 128)}}
    params = {"net": net, "fake": net, "discriminator": {"logit": _shape(64, 3)}}
    make = lambda factor, every: optimizer.adamw(lambda turn: factor)
    tx = optimizer.grouped(make, (("net", 1.0, 5), ("fake", 1.0), ("discriminator", 1.0)))
    state = TrainState(_shape(), params, jax.eval_shape(tx.init, params), params, (), _shape())
    rules = [("/attention/kernel$", (None, "tensor"))]
    places = sharding.of_state(state, WIDE, rules)
    where = _specs(places.params)
    assert where["net"] == where["fake"] == {
        "attention": {"kernel": P(None, "tensor")}, "out": {"kernel": P(None, "fsdp")},
    }  # fmt: skip
    for name in ("net", "fake"):
        adam = places.opt_state.inner_states[name].inner_state[0]
        assert _specs(adam.mu[name]) == _specs(adam.nu[name]) == where[name]


def test_a_batch_must_divide_over_the_devices():
    sharding.check_batch(24, MESH)
    with pytest.raises(ValueError, match=r"batch of 12 .* make config\.train\.batch_size a m"):
        sharding.check_batch(12, MESH)
    assert sharding.of_batch(MESH, leading=1).spec == P(None, ("data", "fsdp"))


def test_eight_devices_train_the_run_of_one_and_its_checkpoint_loads_on_one(tmp_path, reference):
    mesh = json.dumps({"data": 2, "fsdp": 2, "tensor": 2})
    done = tiny.script(tmp_path / "run", "--steps=20", "--mesh", mesh, devices=8)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"devices": 8, "kernel": [8, 16]}
    assert steps(tmp_path / "run")[-1] == 20
    for which in ("ema", "params"):
        ours = restore_params(tmp_path / "run", which, 20)
        theirs = restore_params(reference.workdir, which, 20)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, ours, theirs)
