"""What single files say of how their network was trained, by keys and texts of the header."""

import warnings

import pytest

from diffusion_jax.convert import families
from diffusion_jax.convert.single_file_marks import Marks, marks_of, say_unread


@pytest.mark.parametrize(
    ("names", "metadata", "marks"),
    [
        ((), {}, Marks()),
        (("v_pred",), {}, Marks("v_prediction")),
        (("v_pred", "ztsnr"), {}, Marks("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, Marks("v_prediction")),
        (("ztsnr",), {"modelspec.prediction_type": "epsilon"}, Marks("epsilon", True)),
    ],
)
def test_marks(names, metadata, marks):
    found = marks_of("a.safetensors", names, metadata)
    assert found == marks
    scheduler = families.configs("sdxl", found.prediction_type, None, found.zero_snr).scheduler
    assert scheduler["prediction_type"] == (marks.prediction_type or "epsilon")
    assert scheduler.get("rescale_betas_zero_snr", False) == marks.zero_snr


def test_models_of_other_levels_are_refused_by_name():
    for name in ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std"):
        with pytest.raises(ValueError, match=f"a.safetensors holds {name}"):
            marks_of("a.safetensors", ["x", name], {})
    with pytest.raises(ValueError, match=r"modelspec.prediction_type='flow' cannot be followed"):
        marks_of("a.safetensors", [], {"modelspec.prediction_type": "flow"})


def test_what_is_not_read_is_said():
    with pytest.warns(UserWarning, match=r"encoder_layer=2: .*--config.clip_skip=1"):
        marks_of("a", [], {"modelspec.encoder_layer": "2"})
    with pytest.warns(UserWarning, match="left aside: control_model.x, odd"):
        say_unread("a", ["betas", "control_model.x", "model_ema.decay", "odd", "v_pred"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say_unread("a", ["alphas_cumprod", "sqrt_alphas_cumprod", "model_ema.x", "ztsnr"])
