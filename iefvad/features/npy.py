"""The field's feature files, never pickled: ``NAME__{crop}.npy``, float (T, D), or ``NAME.npy`` with all crops."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, open_regular

LARGEST = 16 << 30
"""Maximum size of an array in bytes: a month of video with features of 768 numbers."""

_CROP = re.compile(r"(.+)__(\d)\.npy", re.DOTALL)
_NUMBERS_OF_CROPS = (1, 5, 10)


def split_crop(path: str) -> tuple[str, int | None]:
    """Split ``folder/NAME__5.npy`` into ("folder/NAME", 5). The crop is None if the name has none."""
    match = _CROP.fullmatch(path)
    return (match[1], int(match[2])) if match else (path.removesuffix(".npy"), None)


def open_npy(path: PathLike) -> np.ndarray:
    """Memory-map an array without reading its values.

    Raises:
        UserError: The file is missing, damaged, pickled (such files can run code) or not numeric.
    """
    try:
        with open_regular(path) as file:
            if file.read(6) != b"\x93NUMPY":
                raise UserError(f"{path} is not a .npy file; save the array with numpy.save")
        with np.errstate(over="ignore"):  # sizes of absurd shapes
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except UserError:
        raise
    except Exception as error:  # numpy parses the header as Python: what it raises for a damaged one is not documented
        if "Array can't be memory-mapped" in str(error) or "allow_pickle" in str(error):
            raise UserError(
                f"{path} contains pickled objects, which can run code when read; save it again as a plain numeric array"
            ) from error
        raise UserError(f"{path} cannot be read ({error}); it may be truncated: fetch or make it again") from error
    if array.dtype.kind not in "fiub":
        raise UserError(f"{path} contains {array.dtype}, not numbers; save it again as a numeric array")
    if isinstance(array, np.memmap) and (surplus := os.path.getsize(path) - array.offset - array.nbytes):
        raise UserError(
            f"{path} has {surplus:,} bytes more than its header says ({array.dtype} {array.shape}); it is damaged:"
            " fetch or make it again"
        )
    if array.nbytes > LARGEST:
        raise UserError(
            f"{path} has {array.nbytes / 1e9:.0f} GB; an array of at most {LARGEST >> 30} GiB is read: divide it"
        )
    return array


def crop_axis(paths: Sequence[PathLike]) -> int | None:
    """Return which axis of feature files counts the crops: 1 for (T, crops, D), 0 for (crops, T, D), None for (T, D).

    All files of a list have one layout: the number of crops is the same in all of them.

    Args:
        paths: The files. If the first one is (T, D), the others are not looked at.

    Raises:
        UserError: As for `open_npy`, or three-dimensional files have no such axis, or two.
    """
    if not paths or open_npy(paths[0]).ndim != 3:
        return None
    shapes = [open_npy(path).shape for path in paths]
    axes = [
        axis
        for axis in (0, 1)
        if len({shape[axis : axis + 1] for shape in shapes}) == 1 and shapes[0][axis] in _NUMBERS_OF_CROPS
    ]
    if len(axes) == 1:
        return axes[0]
    if axes:
        raise UserError(
            f"{paths[0]} and the other files have shape {shapes[0]}, so segments and crops cannot be told apart: save"
            " each crop i as NAME__i.npy of (segments, dimensions), and name these in the list"
        )
    for path in paths:
        npy_shape(path)
    return None


def npy_shape(path: PathLike, axis: int | None = None) -> tuple[int, int]:
    """Return the shape (T, D) of a feature file, from its header.

    Args:
        path: The file.
        axis: As `crop_axis` returns it.

    Raises:
        UserError: As for `open_npy`, or the array has another number of dimensions.
    """
    segments, dim = _open_features(path, axis).shape[-2:]
    return segments, dim


def npy_crops(path: PathLike, axis: int) -> int:
    """Return the number of crops in a feature file. Raises errors as `npy_shape` does."""
    return len(_open_features(path, axis))


def load_npy(path: PathLike, axis: int | None = None, crop: int = 0) -> np.ndarray:
    """Read a feature file, or one crop of it, as float32 (T, D). Raises errors as `npy_shape` does."""
    array = _open_features(path, axis)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond float32 become infinity, which readers refuse
        return np.array(array if axis is None else array[crop], dtype=np.float32)


def _open_features(path: PathLike, axis: int | None = None) -> np.ndarray:
    array = open_npy(path)
    if axis is not None and array.ndim == 3:
        return np.moveaxis(array, axis, 0)
    if array.ndim != 2 or axis is not None:
        split = ""
        if array.ndim == 3:  # RTFM's layout is (T, crops, D); others have the crops first
            part = "array[i]" if array.shape[0] in (1, 5, 10) and array.shape[1] not in (1, 5, 10) else "array[:, i]"
            split = f", or split the crops: save {part} as NAME__i.npy for each crop i, and name these in the list"
        wanted = "(segments, dimensions)" if axis is None else "three-dimensional as the other files are"
        raise UserError(f"{path} has shape {array.shape}; features must be {wanted}: make it again{split}")
    return array
