"""Arrays from files: ``.npy``, ``.npz``, ``.csv`` and folders of images. Nothing is unpickled."""

import array as array_module
import contextlib
import csv
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TextIO

import numpy as np

from sm_jax.data._values import check_numbers

_DELIMITERS = "\t;,"  # the comma last: it may be a decimal mark, or part of a name
_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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
    | ``.csv`` | rows ``[N, columns]``, float64                                               |
    | folder   | its images in the order of their names, uint8 ``[N, H, W, 1]`` (all grey) or |
    |          | ``[N, H, W, 3]`` (grey ones among them are repeated)                         |

    Numbers come as they are stored, because their dtype says how to scale them: uint8 means 8-bit
    levels, so `dequantize` with 256 levels; otherwise `Standardizer`, in float64. Integers become
    floats only there.

    Args:
        path: the file or folder. Of a folder, files that are no images and sub-folders are skipped.
        array: name of the array; read for ``.npz`` only.
        delimiter: what separates columns; None takes the first of tab, semicolon and comma that
            divides the first line. Read for ``.csv`` only.
        header: whether the first line names the columns; None means it does if no cell of it is a
            number. Read for ``.csv`` only.

    Returns:
        A non-empty array of finite real numbers.

    Raises:
        ValueError: the file is missing, of an unknown kind, damaged, empty, ragged, not numeric or
            not finite, holds Python objects, has several arrays and ``array`` names none, or
            images are of several sizes.
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
        case ".csv":
            return _load_csv(path, delimiter, header)
    raise ValueError(
        f"{str(path)!r} has the unknown suffix {path.suffix!r}: known are .npy, .npz, .csv and "
        "folders of images."
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
            f"{str(path)!r} is damaged or no {path.suffix} file: write it anew."
        ) from error


def _array_name(path: pathlib.Path, names: list[str], array: str | None) -> str:
    if array is None and len(names) == 1:
        return names[0]
    if array not in names:
        asked = "array= names none" if array is None else f"none is named {array!r}"
        raise ValueError(f"{str(path)!r} holds the arrays {names} and {asked}: name one of them.")
    return array


def _load_csv(path: pathlib.Path, delimiter: str | None, header: bool | None) -> np.ndarray:
    names, width = None, None
    values, lines = array_module.array("d"), []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        delimiter = delimiter or _detect_delimiter(file)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for row in _rows(reader, path):
            if not "".join(row).strip() and len(row) < 2:
                continue
            if width is None:
                width = len(row)
                if header or (header is None and not any(map(_is_number, row))):
                    names = row
                    continue
            if len(row) != width:
                raise ValueError(
                    f"{str(path)!r}, line {reader.line_num} has {len(row)} columns, the first line "
                    f"has {width} (separated by {delimiter!r}): {delimiter.join(row)[:80]!r}. Make "
                    "all lines equally long, or give the right delimiter=."
                )
            values.extend(_numbers(row, path, reader.line_num, names))
            lines.append(reader.line_num)
    x = np.array(values).reshape(len(lines), width or 0)
    check_numbers(x, repr(str(path)), lambda i: f"line {lines[i[0]]}, {_column(i[1], names)}")
    return x


def _rows(reader: Iterator[list[str]], path: pathlib.Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"{str(path)!r}, line {reader.line_num} is no line of a table: {error}. Look for a "
            "quotation mark that is never closed, or mend the line."
        ) from error


def _detect_delimiter(file: TextIO) -> str:
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    unquoted = re.sub('"[^"]*"', "", first)
    return next((d for d in _DELIMITERS if d in unquoted), ",")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float() reads 1_000


def _numbers(row: list[str], path: pathlib.Path, line: int, names: list[str] | None) -> list[float]:
    if "_" not in "".join(row):
        with contextlib.suppress(ValueError):
            return [float(cell) for cell in row]
    i = next(i for i, cell in enumerate(row) if not _is_number(cell))
    raise ValueError(
        f"{str(path)!r}, line {line}, {_column(i, names)}: {row[i]!r} is no number. Encode "
        "categories as numbers, fill in missing values, write decimal points, or give the right "
        "delimiter= or header=."
    )


def _column(index: int, names: list[str] | None) -> str:
    return f"column {index + 1}" + (f" ({names[index]!r})" if names else "")


def _load_images(folder: pathlib.Path) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install pillow.") from error

    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise ValueError(
            f"the folder {str(folder)!r} holds no images ({', '.join(_IMAGE_SUFFIXES)}); its "
            "sub-folders are not searched."
        )
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode not in _COLOUR or "transparency" in image.info:
                    raise ValueError(
                        f"{str(file)!r} is neither 8-bit grey nor RGB but {image.mode!r}, perhaps "
                        "with transparency: convert it, e.g. with Pillow's Image.convert('RGB')."
                    )
                pixels = np.asarray(image.convert(_COLOUR[image.mode]))
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{str(file)!r} is no readable image: {error}. Remove it.") from error
        images.append(pixels if pixels.ndim == 3 else pixels[:, :, None])
        (height, width), (first_height, first_width) = pixels.shape[:2], images[0].shape[:2]
        if (height, width) != (first_height, first_width):
            raise ValueError(
                f"images of several sizes: {str(files[0])!r} is {first_height}x{first_width}, "
                f"{str(file)!r} is {height}x{width} (height x width): crop or resize them to one."
            )
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
