"""The feature networks of evaluation, and the file that EfficientNet's weights come in."""

import os
import pickle
import struct
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.convert.torch_pickle import read_state_dict
from diffusion_jax.models.vision import efficientnet, inception

if os.environ.get("REQUIRE_PARITY") == "1":
    import torch


def _torch():
    if os.environ.get("REQUIRE_PARITY") == "1":
        return torch
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def state():
    return read_state_dict(efficientnet.packaged_weights())


@pytest.fixture(scope="module")
def network(state):
    """Jitted features at 32 px, of batches of 24."""
    return jax.jit(partial(efficientnet.features, efficientnet.fold(state), size=32))


@pytest.fixture(scope="module")
def images():
    """Smooth random colours, uint8 [24, 32, 32, 3]."""
    coarse = np.random.default_rng(0).uniform(0, 255, (24, 6, 6, 3))
    return np.asarray(jax.image.resize(coarse, (24, 32, 32, 3), "cubic")).clip(0, 255).astype("u1")


def test_efficientnet_has_its_two_layers_and_tells_images_apart(network, images):
    out = network(images)
    assert {name: x.shape[1:] for name, x in out.items()} == {
        "pooled": (320,),
        "head": (1280,),
        "logits": (1000,),
    }
    assert all(bool(jnp.isfinite(x).all()) for x in out.values())
    assert (out["head"] >= 0).all() and (out["head"] <= 6).all()
    assert float(out["pooled"].std(0).min()) > 0


def test_grey_is_repeated(network, images):
    grey = np.repeat(images[..., :1], 3, axis=-1)
    expected = network(grey)["pooled"]
    np.testing.assert_allclose(network(images[..., :1])["pooled"], expected, atol=1e-5)


@pytest.mark.parity
def test_efficientnet_agrees_with_pytorch(network, images):
    torch = _torch()
    state = torch.load(efficientnet.packaged_weights(), weights_only=True)
    with torch.no_grad():
        expected = _torch_efficientnet(torch, state, images)
    out = network(images)
    for name in ("pooled", "head", "logits"):
        scale = float(expected[name].abs().max())
        np.testing.assert_allclose(out[name], expected[name].numpy(), atol=1e-5 * scale)


@pytest.mark.parity
def test_the_reader_agrees_with_pytorch(state):
    torch = _torch()
    expected = torch.load(efficientnet.packaged_weights(), weights_only=True)
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


def _same(torch, x, kernel, stride):
    """TensorFlow's padding: what is odd goes behind."""
    total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
    low, high = total // 2, total - total // 2
    return torch.nn.functional.pad(x, (low, high, low, high))


def _torch_efficientnet(torch, state, images):
    """Convolution and batch norm apart, NCHW."""

    def layer(x, conv, norm, stride=1, groups=1):
        kernel = state[f"{conv}.weight"]
        x = _same(torch, x, kernel.shape[-1], stride)
        x = torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)
        statistics = (state[f"{norm}.running_{name}"] for name in ("mean", "var"))
        affine = (state[f"{norm}.{name}"] for name in ("weight", "bias"))
        return torch.nn.functional.batch_norm(x, *statistics, *affine, eps=1e-3)

    relu6 = torch.nn.functional.relu6
    x = (torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128
    x = relu6(layer(x, "_conv_stem", "_bn0", 2))
    # Stages of MobileNetV2's shape: (repeats, stride of the first).
    strides = [
        stride if i == 0 else 1
        for repeats, stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
        for i in range(repeats)
    ]
    for i, stride in enumerate(strides):
        block, h = f"_blocks.{i}.", x
        if i:
            h = relu6(layer(h, block + "_expand_conv", block + "_bn0"))
        h = relu6(layer(h, block + "_depthwise_conv", block + "_bn1", stride, h.shape[1]))
        h = layer(h, block + "_project_conv", block + "_bn2")
        x = x + h if h.shape == x.shape else h
    head = relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    logits = head @ state["_fc.weight"].T + state["_fc.bias"]
    return {"pooled": x.mean((2, 3)), "head": head, "logits": logits}


def _pickled(size, offset, stride):
    """A state dict {"w": 4 float32} as PyTorch pickles it, saying what it likes of its size."""
    number = lambda n: b"J" + struct.pack("<i", n)
    numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ"
    parts = (text("w"), rebuild, number(offset), numbers(size), numbers(stride))
    return b"\x80\x02}" + b"".join(parts) + b"tRs."


def _archive(path, index):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", index)
        archive.writestr("any/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def test_a_zipped_state_dict_is_read_as_its_strides_say(tmp_path):
    path = _archive(tmp_path / "w.pth", _pickled([2, 2], 0, [1, 2]))
    np.testing.assert_array_equal(read_state_dict(path)["w"], [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("size", "offset", "stride"),
    [([8], 0, [1]), ([2], 3, [1]), ([4], 0, [-1]), ([1], -1, [1]), ([2, 2], 0, [3, 1])],
)
def test_tensors_that_reach_beyond_their_data_are_refused(tmp_path, size, offset, stride):
    path = _archive(tmp_path / "w.pth", _pickled(size, offset, stride))
    with pytest.raises(ValueError, match="beyond its data"):
        read_state_dict(path)


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Runs()),
        b"any text",
        b"",
        pickle.dumps([1, 2]),
        b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    ],
    ids=["code", "text", "empty", "list", "letters"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_files_are_refused_in_a_sentence_and_run_nothing(
    tmp_path, monkeypatch, content, zipped
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if zipped:
        _archive(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth is not a plain PyTorch state dict"):
        read_state_dict(path)
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_an_archive_without_an_index_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        read_state_dict(tmp_path / "w.pth")


def test_weights_that_lack_a_tensor_are_refused_by_its_name(state):
    partial_state = {k: v for k, v in state.items() if k != "_blocks.3._bn1.bias"}
    with pytest.raises(ValueError, match=r"_blocks\.3\._bn1\.bias"):
        efficientnet.fold(partial_state)
    with pytest.raises(ValueError, match="Conv2d_1a_3x3"):
        inception.fold({"any.weight": np.zeros(3)})


class _TorchInception:
    """InceptionV3 with FID's pools, its random weights made as the layers are first met."""

    def __init__(self, torch):
        self.torch, self.state = torch, {}
        self.f = torch.nn.functional
        self.draw = torch.Generator().manual_seed(0)

    def conv(self, x, name, out, kernel, stride=1, valid=False):
        torch, (kh, kw) = self.torch, kernel
        rand = lambda *shape: torch.rand(*shape, generator=self.draw)
        fan_in = x.shape[1] * kh * kw
        weight = torch.randn(out, x.shape[1], kh, kw, generator=self.draw) * (2 / fan_in) ** 0.5
        norm = {"weight": 0.5 + rand(out), "bias": rand(out) - 0.3}
        norm |= {"running_mean": rand(out) - 0.5, "running_var": 0.5 + rand(out)}
        self.state[f"{name}.conv.weight"] = weight
        self.state |= {f"{name}.bn.{key}": value for key, value in norm.items()}
        x = self.f.conv2d(x, weight, stride=stride, padding=0 if valid else (kh // 2, kw // 2))
        affine = norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
        return self.f.batch_norm(x, *affine, eps=1e-3).relu()

    def chain(self, x, block, *layers):
        """Layers (name, out, "kh x kw" as a tuple, stride); a stride of 2 pads nothing."""
        for name, out, kernel, *stride in layers:
            x = self.conv(x, f"{block}.branch{name}", out, kernel, *stride, valid=bool(stride))
        return x

    def mean(self, x):
        return self.f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def __call__(self, x):
        pool = lambda x: self.f.max_pool2d(x, 3, 2)
        x = self.conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, valid=True)
        x = self.conv(x, "Conv2d_2a_3x3", 32, (3, 3), valid=True)
        x = pool(self.conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        x = self.conv(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = pool(self.conv(x, "Conv2d_4a_3x3", 192, (3, 3), valid=True))
        for block, n in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.of_35(x, block, n)
        x = self.joined(
            x,
            "Mixed_6a",
            [("3x3", 384, (3, 3), 2)],
            [("3x3dbl_1", 64, (1, 1)), ("3x3dbl_2", 96, (3, 3)), ("3x3dbl_3", 96, (3, 3), 2)],
            last=pool(x),
        )
        for block, n in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160)):
            x = self.of_17(x, block, n)
        x = self.of_17(x, "Mixed_6e", 192)
        sevens = [("7x7x3_1", 192, (1, 1)), ("7x7x3_2", 192, (1, 7)), ("7x7x3_3", 192, (7, 1))]
        sevens.append(("7x7x3_4", 192, (3, 3), 2))
        threes = [("3x3_1", 192, (1, 1)), ("3x3_2", 320, (3, 3), 2)]
        x = self.joined(x, "Mixed_7a", threes, sevens, last=pool(x))
        x = self.of_8(x, "Mixed_7b", self.mean(x))
        x = self.of_8(x, "Mixed_7c", self.f.max_pool2d(x, 3, 1, 1))
        return x.mean((2, 3))

    def joined(self, x, block, *branches, last):
        parts = [self.chain(x, block, *branch) for branch in branches]
        return self.torch.cat([*parts, last], 1)

    def of_35(self, x, block, n):
        five = [("5x5_1", 48, (1, 1)), ("5x5_2", 64, (5, 5))]
        three = [("3x3dbl_1", 64, (1, 1)), ("3x3dbl_2", 96, (3, 3)), ("3x3dbl_3", 96, (3, 3))]
        last = self.chain(self.mean(x), block, ("_pool", n, (1, 1)))
        return self.joined(x, block, [("1x1", 64, (1, 1))], five, three, last=last)

    def of_17(self, x, block, n):
        seven = [("7x7_1", n, (1, 1)), ("7x7_2", n, (1, 7)), ("7x7_3", 192, (7, 1))]
        kernels = ((1, 1), (7, 1), (1, 7), (7, 1), (1, 7))
        double = [(f"7x7dbl_{i}", n, kernel) for i, kernel in enumerate(kernels, 1)]
        double[-1] = ("7x7dbl_5", 192, (1, 7))
        last = self.chain(self.mean(x), block, ("_pool", 192, (1, 1)))
        return self.joined(x, block, [("1x1", 192, (1, 1))], seven, double, last=last)

    def of_8(self, x, block, pooled):
        three = self.chain(x, block, ("3x3_1", 384, (1, 1)))
        double = self.chain(x, block, ("3x3dbl_1", 448, (1, 1)), ("3x3dbl_2", 384, (3, 3)))
        sides = (("a", (1, 3)), ("b", (3, 1)))
        parts = [self.chain(x, block, ("1x1", 320, (1, 1)))]
        parts += [self.chain(three, block, (f"3x3_2{s}", 384, kernel)) for s, kernel in sides]
        parts += [self.chain(double, block, (f"3x3dbl_3{s}", 384, kernel)) for s, kernel in sides]
        return self.torch.cat([*parts, self.chain(pooled, block, ("_pool", 192, (1, 1)))], 1)


@pytest.mark.parity
def test_inception_agrees_with_pytorch():
    torch = _torch()
    reference = _TorchInception(torch)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 107, 107, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    params = inception.fold({name: x.numpy() for name, x in reference.state.items()})
    out = jax.jit(inception.backbone)(params, images)
    assert out.shape == (2, 2048) and expected.std() > 1e-3
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
