"""Files and folders appear whole, with the rights of any other file, or not at all."""

import os
import stat

import pytest

from diffusion_jax.files import whole, whole_folder


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    assert os.umask(before) == 0o027  # reading it left it as it was


def test_a_file_is_there_once_it_is_whole(tmp_path, umask):
    path = tmp_path / "new" / "a.txt"
    with whole(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        assert temporary.name.startswith(".a-")
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(RuntimeError), whole(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    with whole(path) as temporary:
        temporary.write_text("three")
    assert path.read_text() == "three"


def test_a_folder_is_there_once_it_is_whole(tmp_path, umask):
    path = tmp_path / "new" / "run"
    with whole_folder(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.startswith(".run-")
        (temporary / "a").write_text("one")
        assert not path.exists()
    assert (path / "a").read_text() == "one" and list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    with pytest.raises(ValueError, match="exists; name a folder that does not"), whole_folder(path):
        pass
    other = tmp_path / "new" / "other"
    with pytest.raises(RuntimeError), whole_folder(other):
        raise RuntimeError
    assert list(path.parent.iterdir()) == [path]
