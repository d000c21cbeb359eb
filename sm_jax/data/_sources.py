"""Arrays from files: ``.npy``, ``.npz``, ``.csv`` and folders of images. Nothing is unpickled."""

import collections
import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from sm_jax.data._csv import load_csv
from sm_jax.data._values import check_numbers

_IMAGE_SUFFIXES = ".bmp, .gif, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
_UNREAD_SUFFIXES = (
    ".apng, .avif, .dng, .exr, .heic, .heif, .jp2, .jpe, .jxl, .pbm, .pnm, .svg, .tga"
)
_COLOUR = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # Pillow's mode -> that it is read as


def load(
    path: str | os.PathLike,
    *,
    array: str | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
) -> np.ndarray:
    r"""Read examples ``[N, ...]`` from a file, or from a folder of images.

    | path     | gives                                                                        |
    |----------|------------------------------------------------------------------------------|
    | ``.npy`` | the array                                                                    |
    | ``.npz`` | the array named ``array``, or the only one                                   |
    | ``.csv`` | rows ``[N, columns]``, float64; ``.tsv`` and ``.txt`` alike                  |
    | folder   | its images in the order of their names, uint8 ``[N, H, W, 1]`` (all gray) or |
    |          | ``[N, H, W, 3]`` (gray ones among them are repeated)                         |

    Numbers come as they are stored, because their dtype says how to scale them: uint8 means 8-bit
    values, so ``dequantize`` with ``num_values=256``; otherwise ``Standardizer``, in float64.
    Integers become floats only there. Images are turned upright, as their EXIF orientation says.

    In a table the first line names the columns if no cell of it is a number. The index that pandas
    and R write as a first column without a name is left out, with a warning. Numbers that may be
    names, such as ``0,1,2`` above fractions or ``400.5,401.5`` far from all values, are refused
    unless ``header`` says what they are; comments are always refused, except for a first line of
    names with ``header=True``. Lines such as ``1,5`` without names above them may be one number or
    two, and are refused unless ``delimiter`` says that they are two. A table is UTF-8, or UTF-16
    with a byte-order mark.

    Args:
        path: the file or folder. Of a folder, files other than images and sub-folders are skipped,
            images of kinds that are not read (such as ``.heic``) with a warning.
        array: name of the array; read for ``.npz`` only.
        delimiter: the character that separates columns; None takes the first of tab, semicolon,
            comma and (between numbers) blank that divides the first line. Read for tables only.
        header: whether the first line names the columns; None decides as above. Read for tables
            only.

    Returns:
        A non-empty array of finite real numbers.

    Raises:
        ValueError: the file is missing, of an unknown kind, damaged, empty, ragged, not numeric or
            not finite, holds Python objects, has several arrays and ``array`` names none, begins
            with a comment or a line that may be names or numbers, may have one column or two, or
            images are of several sizes, of several pages or of more than 8 bits; or ``delimiter``
            is not one character.
        TypeError: the array is of complex numbers, strings, dates or records.
        ImportError: Pillow, needed for images, is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "points.csv")
        ...     _ = file.write_text("height;width\n1.5;2\n3;4")
        ...     load(file).tolist()
        [[1.5, 2.0], [3.0, 4.0]]
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return _load_images(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder {str(path)!r} (resolved: {path.resolve()}).")
    match path.suffix.lower():
        case ".npy" | ".npz":
            return _load_numpy(path, array)
        case ".csv" | ".tsv" | ".txt":
            return load_csv(path, delimiter, header)
        case ".gz" | ".zip" | ".bz2" | ".xz":
            raise ValueError(
                f"{str(path)!r} is compressed: unpack it first, and read what it holds."
            )
    if path.suffix.lower() in _IMAGE_SUFFIXES.split(", "):
        raise ValueError(f"{str(path)!r} is one image: give the folder of all images.")
    raise ValueError(
        f"{str(path)!r} has the unknown suffix {path.suffix!r}: known are .npy, .npz, .csv, .tsv, "
        ".txt and folders of images."
    )


def _load_numpy(path: pathlib.Path, array: str | None) -> np.ndarray:
    with open(path, "rb") as file:
        with _readable(path):
            x = np.load(file, allow_pickle=False)
        if not isinstance(x, np.ndarray):
            name = _array_name(path, x.files, array)
            with _readable(path):
                x = x[name]
    check_numbers(x, repr(str(path)))
    return x.astype(x.dtype.newbyteorder("="), copy=False)  # JAX takes no other byte order


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises almost anything, even tokenize.TokenError
        if "Object arrays" in str(error):
            raise ValueError(
                f"{str(path)!r} holds Python objects, which are never unpickled: save numbers, "
                "e.g. np.save(path, np.asarray(x, np.float32))."
            ) from error
        raise ValueError(
            f"{str(path)!r} is damaged or not a {path.suffix} file: write it anew."
        ) from error


def _array_name(path: pathlib.Path, names: list[str], array: str | None) -> str:
    if array is None and len(names) == 1:
        return names[0]
    if array not in names:
        named = "array= names none" if array is None else f"none is named {array!r}"
        raise ValueError(
            f"{str(path)!r} holds the arrays {names} and {named}: name one of them (array=, "
            "--array in a shell)."
        )
    return array


def _load_images(folder: pathlib.Path) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install pillow.") from error

    by_suffix = collections.defaultdict(list)
    for file in sorted(folder.iterdir()):
        if not file.name.startswith("._"):  # what macOS keeps beside a file
            by_suffix[file.suffix.lower()].append(file)
    unread = [f"{len(by_suffix[s])} {s}" for s in _UNREAD_SUFFIXES.split(", ") if s in by_suffix]
    if unread:
        warnings.warn(
            f"{str(folder)!r}: images of kinds that are not read are left out "
            f"({', '.join(unread)}): convert them, e.g. to .png",
            stacklevel=3,
        )
    files = sorted(file for s in _IMAGE_SUFFIXES.split(", ") for file in by_suffix[s])
    if not files:
        raise ValueError(
            f"the folder {str(folder)!r} holds no images ({_IMAGE_SUFFIXES}); its sub-folders are "
            "not searched."
        )
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                _check_image(file, image)
                upright = ImageOps.exif_transpose(image)
                pixels = np.asarray(upright.convert(_COLOUR[image.mode]))
                if image.mode == "P" and (pixels == pixels[..., :1]).all():
                    pixels = pixels[..., 0]  # a palette of grays
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{str(file)!r} is not a readable image: {error}. Remove it."
            ) from error
        images.append(pixels if pixels.ndim == 3 else pixels[:, :, None])
        (height, width), (first_height, first_width) = pixels.shape[:2], images[0].shape[:2]
        if (height, width) != (first_height, first_width):
            raise ValueError(
                f"images of several sizes: {str(files[0])!r} is {first_height}x{first_width}, "
                f"{str(file)!r} is {height}x{width} (height x width): crop or resize them to one."
            )
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _check_image(file: pathlib.Path, image: Any) -> None:
    """Raise unless all that the file holds is one image of 8-bit gray or RGB."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(f"{str(file)!r} holds {pages} images: write each to a file of its own.")
    if image.mode.startswith("I") or image.mode == "F" or _is_cut(image):
        raise ValueError(
            f"{str(file)!r} has more than 8 bits per channel (Pillow's mode {image.mode!r}), and "
            "images are read as 8-bit values: save the pixels as an array, .npy, or divide them "
            "down to 0 to 255 (Pillow's Image.convert clips them instead)."
        )
    if image.mode not in _COLOUR or "transparency" in image.info:
        raise ValueError(
            f"{str(file)!r} is neither 8-bit gray nor RGB but {image.mode!r}, perhaps with "
            "transparency: convert it, e.g. with Pillow's Image.convert('RGB')."
        )


def _is_cut(image: Any) -> bool:
    """Return whether Pillow would cut 16-bit colors to 8 bits, which its mode does not tell."""
    args = image.tile[0][3] if image.tile else ""
    mode, *rest = (args,) if isinstance(args, str) else args or ("",)
    largest = rest[0] if image.format == "PPM" and rest else 0
    return ";16" in str(mode) or largest > 255
