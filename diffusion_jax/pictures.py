"""Pictures in and out: read one; write grids, the strip of both processes, scatter plots."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_jax.data import picture_files
from diffusion_jax.data.images import resized, with_channels
from diffusion_jax.data.pixels import to_unit
from diffusion_jax.files import whole


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Images [n, h, w, c] uint8, row by row, as one uint8 [H, W, c] on white.

    Args:
        images: c is 1, 3 or 4.
        columns: of the grid; None for the nearest to a square.
        gap: white pixels between images.
    """
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return sheet


def save_image(
    path: str | os.PathLike,
    image: np.ndarray,
    zoom: int = 1,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 [h, w, c] as a PNG, each pixel zoom x zoom, whole or not at all.

    ``text`` is kept in the file, such as the settings that the image was made with.
    """
    image = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    with whole(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info)


def read_picture(
    picture: str | os.PathLike | np.ndarray, size: Sequence[int], channels: int, field: str
) -> np.ndarray:
    """A picture at a size: float32 [h, w, channels] in [-1, 1].

    Args:
        picture: path of a file, read as ``data.picture_files`` says; or uint8 [H, W], [H, W, 1] or
            [H, W, 3].
        size: (height, width) that it is brought to, by Lanczos.
        channels: 1 for grey, 3 for colour.
        field: of the config that names it, for messages.

    Raises:
        ValueError: if the file is no picture or is absent.
    """
    if isinstance(picture, np.ndarray):
        pixels = picture if picture.ndim == 3 else picture[..., None]
    else:
        try:
            pixels = picture_files.read(picture)
        except ValueError as error:
            raise ValueError(
                f"config.{field}: {picture!r} cannot be read as a picture ({error}); name a file "
                "such as photo.png"
            ) from None
    height, width = size
    return to_unit(resized(with_channels(pixels, channels), (height, width), "stretch"))


def save_animation(
    path: str | os.PathLike, frames: Sequence[np.ndarray], zoom: int = 1, seconds: float = 4.0
) -> None:
    """Write uint8 frames [h, w, c] as a GIF that loops and rests on its last frame.

    Args:
        path: of the GIF.
        frames: of equal shapes, in order.
        zoom: each pixel becomes zoom x zoom.
        seconds: of the whole way, before the rest of one second.
    """
    large = [np.repeat(np.repeat(frame, zoom, 0), zoom, 1) for frame in frames]
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in large]
    each = max(20, round(1000 * seconds / len(pictures)))
    durations = [each] * (len(pictures) - 1) + [each + 1000]
    with whole(path) as temporary:
        pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )


def save_strip(path: str | os.PathLike, rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Rows of images over time, such as the forward and the reverse process.

    Args:
        path: of the PNG.
        rows: (name, images uint8 [n, h, w, c], the time t of each [n]).
    """
    n = max(len(times) for _, _, times in rows)
    figure = Figure(figsize=(n + 1.2, len(rows) * 1.35), layout="constrained")
    axes = figure.subplots(len(rows), n, squeeze=False)
    for row, (name, images, times) in zip(axes, rows, strict=True):
        for axis, image, t in zip(row, images, times, strict=False):
            axis.imshow(image, cmap="gray" if image.shape[-1] == 1 else None, vmin=0, vmax=255)
            axis.set_title(f"t = {t:.2f}", fontsize=8)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=9)
    _save(figure, path)


def save_rows(
    path: str | os.PathLike, rows: Sequence[tuple[str, np.ndarray]], columns: int = 3
) -> None:
    """Rows of images, each under its name.

    Args:
        path: of the PNG.
        rows: (name, images uint8 [n, h, w, c]) each, of one n.
        columns: rows side by side.
    """
    lines = math.ceil(len(rows) / columns)
    n, h, w, c = rows[0][1].shape
    size = (columns * n * 0.32, lines * (0.32 * h / w + 0.28))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, images) in zip(axes, rows, strict=False):
        axis.imshow(grid(images, n), cmap="gray" if c == 1 else None, vmin=0, vmax=255)
        axis.set_title(name, fontsize=8)
    for axis in axes:
        axis.axis("off")
    _save(figure, path)


def save_scatter(
    path: str | os.PathLike, panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]]
) -> None:
    """Points in the plane, one panel each.

    Args:
        path: of the PNG.
        panels: (name, points [n, 2], labels [n] or None) each.
    """
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    limit = max(float(np.percentile(np.abs(points), 99.5)) for _, points, _ in panels) * 1.2
    for axis, (name, points, labels) in zip(axes[0], panels, strict=True):
        axis.scatter(*points.T, s=3, c=labels, cmap="tab10" if labels is not None else None)
        axis.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    _save(figure, path)


def save_curves(
    path: str | os.PathLike,
    of: str,
    x: Sequence[float],
    curves: Mapping[str, Sequence[tuple[float, float, int]]],
    rows: Sequence[np.ndarray],
) -> None:
    """Two figures over one setting, each on its own axis, and images at each setting.

    Args:
        path: of the PNG.
        of: what the setting is.
        x: its values [n].
        curves: name -> (value, spread, count) at each; two of them.
        rows: images uint8 [k, h, w, c] at each.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    axes = (left, left.twinx())
    for axis, colour, (name, line) in zip(
        axes, ("tab:blue", "tab:red"), curves.items(), strict=True
    ):
        values, spreads = [f[0] for f in line], [f[1] for f in line]
        axis.errorbar(x, values, spreads, color=colour, marker="o", capsize=3)
        axis.set_ylabel(name, color=colour)
    left.set(xlabel=of, xscale="log", xticks=x, xticklabels=[f"{value:g}" for value in x])
    left.minorticks_off()
    sheet = np.concatenate([grid(row, len(row)) for row in rows])
    right.imshow(sheet)
    middle = (np.arange(len(x)) + 0.5) * len(sheet) / len(x)
    right.set(yticks=middle, yticklabels=[f"{value:g}" for value in x], xticks=[], ylabel=of)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
