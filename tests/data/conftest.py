import pytest

from diffusion_jax.data.prepare import prepare


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of prepared sets, with mnist5k in it."""
    folder = tmp_path_factory.mktemp("sets")
    prepare("mnist5k", folder)
    return folder
