"""Masks by their values: what is white, which cells are touched, how the drawn fades in."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.apps import masks


def test_white_is_what_is_not_darker_than_grey():
    picture = np.array([[[-1, -1, 0.9], [0.5, -0.5, 0.0], [1, 1, -1]]], np.float32)
    mask = masks.binary(picture)
    assert mask.dtype == np.float32 and mask.tolist() == [[[0.0], [1.0], [1.0]]]


def test_a_cell_is_repainted_if_any_of_its_pixels_is():
    mask = np.zeros((4, 6, 1), np.float32)
    mask[1, 3] = mask[3, 4] = 1
    assert masks.cells(mask, 2)[..., 0].tolist() == [[0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(masks.cells(mask, 1), mask)


def test_the_drawn_fades_in_over_the_width_and_only_inside():
    row = np.zeros((5, 9, 1), np.float32)
    row[:, 2:] = 1  # its border is on the left; depths 1, 2, 3, ...
    share = masks.feathered(row, 3)
    np.testing.assert_allclose(share[2, :, 0], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert share.dtype == np.float32
    np.testing.assert_allclose(masks.feathered(row, 1)[0, :4, 0], [0, 0, 0.5, 1])
    for width in (0, -1):
        np.testing.assert_array_equal(masks.feathered(row, width), row)
    whole = np.ones((3, 3, 1), np.float32)  # without a border nothing fades
    np.testing.assert_array_equal(masks.feathered(whole, 4), whole)


def test_what_is_pasted_is_a_blend_and_the_picture_itself_outside():
    drawn, picture = jnp.array([1.0, 2.0, jnp.nan, 4.0]), jnp.array([0.0, -2.0, 7.0, 8.0])
    share = jnp.array([1.0, 0.25, 0.0, 0.5])
    np.testing.assert_allclose(masks.paste(drawn, picture, share), [1.0, -1.0, 7.0, 6.0])
