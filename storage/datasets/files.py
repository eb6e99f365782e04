"""Data in files of the user's own: folders of images by class, `.npz`, Zarr."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError, did_you_mean

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def load_image_folder(
    path: Path, size: tuple[int, int] | None = None, grey: bool = False
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One sub-folder for each class: images uint8 (sample, channel, y, x), targets int64, class names.

    `size` (y, x) resizes; without it all images must have one size. Raises ProbeError otherwise.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_dir():
        raise ProbeError(f"there is no folder of images {path}.")
    names = tuple(sorted(item.name for item in path.iterdir() if item.is_dir()))
    images, targets = [], []
    for index, name in enumerate(names):
        for file in sorted(item for item in (path / name).iterdir() if item.suffix.lower() in _IMAGES):
            try:
                with Image.open(file) as picture:
                    converted = picture.convert("L" if grey else "RGB")
                    pixels = np.asarray(converted.resize((size[1], size[0])) if size else converted)
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise ProbeError(f"image {file} cannot be read: {error}.") from None
            images.append(pixels[None] if grey else pixels.transpose(2, 0, 1))
            targets.append(index)
            if images[0].shape != images[-1].shape:
                raise ProbeError(
                    f"image {file} is {images[-1].shape[1:]}, the first one {images[0].shape[1:]}; give `size`."
                )
    if not images:
        raise ProbeError(f"no images below {path}: expected one sub-folder for each class.")
    return np.stack(images), np.asarray(targets, np.int64), names


def load_npz(path: Path, inputs: str = "inputs", targets: str = "targets") -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays named `inputs` and (if it is there) `targets` of an `.npz`. Pickled content is refused."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if inputs not in content:
                raise ProbeError(f"{path} has no array {inputs!r}." + did_you_mean(inputs, content))
            return content[inputs], content[targets] if targets in content else None
    except (OSError, ValueError, EOFError) as error:
        raise ProbeError(f"{path} cannot be read: {error}.") from None


def load_zarr(
    path: Path, inputs: str = "inputs", targets: str = "targets"
) -> tuple[np.ndarray, np.ndarray | None]:
    """The arrays named `inputs` and (if it is there) `targets` of a Zarr group."""
    from stratascope.storage.archive import read_array

    has_targets = (path / targets).is_dir()
    return read_array(path / inputs), read_array(path / targets) if has_targets else None
