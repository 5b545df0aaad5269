"""Every field of every scheduler that is read is followed, without effect, or refused by name."""

import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.convert.config_fields import Equivalent, Followed, Only, defaults
from diffusion_jax.convert.scheduler_fields import FIELDS, LEFTOVERS, READ_AS_LEFTOVERS
from diffusion_jax.convert.scheduler_tables import process_of
from diffusion_jax.convert.schedulers import boundary_of, sampling_of, target_of

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
PAIRS = [(name, field) for name, fields in FIELDS.items() for field in fields]
# What a field of this name is set to, in place of its default, and what else that needs.
OTHER = {
    "num_train_timesteps": 900, "beta_start": 0.002, "beta_end": 0.018,
    "beta_schedule": "squaredcos_cap_v2", "trained_betas": [0.001] * 500 + [0.02] * 500,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "steps_offset": 3, "use_karras_sigmas": True,
    "use_exponential_sigmas": True, "use_beta_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0,
    "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5,
    "clip_sample_range": 2.0, "solver_order": 3, "lower_order_final": False,
    "interpolation_type": "log_linear", "timestep_type": "continuous",
    "final_sigmas_type": "sigma_min", "euler_at_final": True, "use_lu_lambdas": True,
    "lambda_min_clipped": -2.0, "variance_type": "fixed_large", "original_inference_steps": 40,
    "timestep_scaling": 8.0,
}  # fmt: skip
OTHER_OF = {
    ("DPMSolverMultistepScheduler", "algorithm_type"): "dpmsolver",
    ("DPMSolverMultistepScheduler", "solver_type"): "heun",
    ("UniPCMultistepScheduler", "solver_type"): "bh1",
    ("LCMScheduler", "beta_schedule"): "linear",
}
OTHER_OF_EQUIVALENTS = {
    "flow_shift": 3.0, "time_shift_type": "linear", "use_dynamic_shifting": True,
    "set_alpha_to_one": False,
}  # fmt: skip
NEEDS = {
    "sigma_min": {"use_exponential_sigmas": True}, "sigma_max": {"use_exponential_sigmas": True},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "sample_max_value": {"thresholding": True}, "clip_sample_range": {"clip_sample": True},
    "clip_sample": {"thresholding": False}, "timestep_type": {"prediction_type": "v_prediction"},
    "steps_offset": {"timestep_spacing": "leading"},
    "lower_order_final": {"solver_order": 3},
    "rescale_betas_zero_snr": {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012
    },
    "euler_at_final": {"final_sigmas_type": "sigma_min"},
}  # fmt: skip
BAD = {
    "use_flow_sigmas": True, "variance_type": "learned_range", "predict_x0": False,
    "disable_corrector": [0, 3], "solver_p": "DDIM", "use_dynamic_shifting": True,
    "shift_terminal": 0.1, "algorithm_type": "sde", "solver_type": "bh3",
}  # fmt: skip


def read(config):
    """All that is made of a config."""
    process = process_of(config)
    steps = process.schedule.steps or 0
    times = jnp.arange(1, steps + 1) / steps
    boundary = tuple(np.asarray(c) for c in boundary_of(config)(process.at(0.003)))
    told = (sampling_of(config), target_of(config), steps)
    return told, np.asarray(process.schedule.log_snr(times)), boundary


def same(a, b):
    return a[0] == b[0] and np.array_equal(a[1], b[1]) and all(map(np.array_equal, a[2], b[2]))


def other(name, field):
    default = defaults(FIELDS[name])[field]
    if (name, field) in OTHER_OF:
        return OTHER_OF[name, field]
    return not default if isinstance(default, bool) else OTHER[field]


def pairs(kind):
    return [(name, field) for name, field in PAIRS if isinstance(FIELDS[name][field], kind)]


@pytest.mark.parametrize(("name", "field"), pairs(Followed))
def test_what_is_followed_changes_something(name, field):
    own = {k: v for k, v in NEEDS.get(field, {}).items() if k in FIELDS[name]}
    base = {"_class_name": name, **own}
    assert not same(read(base), read({**base, field: other(name, field)}))
    default = FIELDS[name][field].default
    assert same(read(base), read({**base, field: own.get(field, default)}))


@pytest.mark.parametrize(("name", "field"), pairs(Equivalent))
def test_what_is_equivalent_has_no_effect(name, field):
    value = {**OTHER, **OTHER_OF_EQUIVALENTS}[field]
    base = {"_class_name": name}
    assert FIELDS[name][field].why
    assert same(read(base), read({**base, field: value}))


@pytest.mark.parametrize(("name", "field"), pairs(Only))
def test_of_what_is_restricted_other_values_are_refused_by_name(name, field):
    known, base = FIELDS[name][field], {"_class_name": name}
    value = BAD[field]
    with pytest.raises(ValueError, match=f"scheduler_config.json: {field}=") as raised:
        sampling_of({**base, field: value})
    said = str(raised.value)
    assert repr(tuple(value) if isinstance(value, list) else value) in said
    assert repr(known.values) in said and known.mend in said
    for fine in known.values:
        assert same(read(base), read({**base, field: fine}))


@pytest.mark.parametrize("name", FIELDS)
def test_leftovers_of_other_classes_have_no_effect_and_unknown_fields_are_told(name):
    left = {k: "left" for k in LEFTOVERS - FIELDS[name].keys()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = read({"_class_name": name})
        assert same(plain, read({"_class_name": name, **left, "_diffusers_version": "0.42.1"}))
    with pytest.warns(
        UserWarning, match=r"scheduler_config.json: use_odd_sigmas = True is a field"
    ):
        assert sampling_of({"_class_name": name, "use_odd_sigmas": True}) == plain[0][0]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("DPMSolverMultistep", {"solver_order": 4}, "solver_order=4"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type = 'sde-dpmso"),
        (
            "DPMSolverMultistep",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "solver_order = 3 with algorithm_type",
        ),
        ("DPMSolverMultistep", {"solver_type": "rk4"}, "solver_type = 'rk4'"),
        ("UniPCMultistep", {"solver_type": "bh3"}, "solver_type = 'bh3'"),
        ("EulerDiscrete", {"final_sigmas_type": "one"}, "final_sigmas_type = 'one'"),
        ("EulerDiscrete", {"timestep_type": "odd"}, "timestep_type = 'odd'"),
        ("EulerDiscrete", {"interpolation_type": "odd"}, "interpolation_type = 'odd'"),
        (
            "EulerDiscrete",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "use_karras_sigmas and use_beta_sigmas are both true",
        ),
        (
            "EulerDiscrete",
            {"use_beta_sigmas": True, "sigma_min": 0},
            "sigma_min=0 cannot be converted: it must be a number above 0",
        ),
        ("DDPM", {"variance_type": "learned_range"}, "variance_type = 'learned_range'"),
        ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type = 'fixed_large_log'"),
        (
            "DPMSolverMultistep",
            {"lambda_min_clipped": -2.0, "timestep_spacing": "trailing"},
            "lambda_min_clipped = -2.0 leaves",
        ),
    ],
)
def test_a_value_that_is_not_followed_is_named(name, changes, words):
    with pytest.raises(ValueError, match=f"scheduler_config.json: {words}"):
        sampling_of({"_class_name": f"{name}Scheduler", **changes})


def test_tables_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="num_train_timesteps = 1000 but trained_betas has 2"):
        process_of({"trained_betas": [0.1, 0.2], "num_train_timesteps": 1000})
    made = {"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}
    with pytest.raises(ValueError, match="rescale_betas_zero_snr = True makes the levels"):
        process_of(made)
    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    last = process_of({**made, **scaled}).at(1.0)
    np.testing.assert_allclose(last.alpha, 2.0**-12, rtol=1e-5)


def rows():
    """The docs' table, a row for each field: the classes that follow it, ignore it, refuse it."""
    short = lambda name: (
        name.replace("Scheduler", "").replace("Discrete", "").replace("Multistep", "")
    )
    fields = sorted({field for _, field in PAIRS})

    def cell(field, kind):
        found = [n for n in FIELDS if isinstance(FIELDS[n].get(field), kind)]
        return "all" if len(found) == len(FIELDS) else ", ".join(map(short, found))

    kinds = (Followed, Only, Equivalent)
    return [" | ".join(["", f"`{f}`", *(cell(f, k) for k in kinds), ""]).strip() for f in fields]


def test_the_docs_table_is_this_one():
    text = DOCS.read_text()
    told = text.split("| field | followed |", 1)[1].split("\n\n")[0].splitlines()[2:]
    assert [" ".join(row.split()) for row in told] == [" ".join(row.split()) for row in rows()]


@pytest.mark.parity
def test_these_are_the_fields_of_diffusers():
    """Names and defaults of each ``__init__``, and the names of all schedulers' fields."""
    if os.environ.get("REQUIRE_PARITY") == "1":
        import diffusers
    else:
        diffusers = pytest.importorskip("diffusers")
    from inspect import Parameter, signature

    taken = lambda kind: {
        k: p.default for k, p in signature(kind.__init__).parameters.items()
        if k != "self" and p.kind is not Parameter.VAR_KEYWORD
    }  # fmt: skip
    for name, fields in FIELDS.items():
        theirs = taken(getattr(diffusers, name))
        extra = fields.keys() - theirs.keys()
        assert theirs.keys() <= fields.keys() and extra <= set(READ_AS_LEFTOVERS)
        ours = {k: [] if v == () else v for k, v in defaults(fields).items()}
        assert {k: v for k, v in theirs.items() if k in ours} == {
            k: v for k, v in ours.items() if k in theirs
        }
    every = [getattr(diffusers, n) for n in dir(diffusers) if n.endswith("Scheduler")]
    assert len(every) > 30
    assert set().union(*map(taken, every)) <= LEFTOVERS
