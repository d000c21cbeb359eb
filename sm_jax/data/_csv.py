"""Tables of numbers from text files: ``.csv``, ``.tsv`` and ``.txt``."""

import array as array_module
import contextlib
import csv
import itertools
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from sm_jax.data._values import check_numbers

_DELIMITERS = "\t;,"  # the comma last: it may be a decimal mark, or part of a name
_UNNAMED = ("", "Unnamed: 0")  # what pandas writes above the index of the rows
_REMEDY = "header=True or header=False, --header yes or --header no in a shell"


def load_csv(path: pathlib.Path, delimiter: str | None, header: bool | None) -> np.ndarray:
    """Return the table ``[N, columns]``; the arguments are those of ``sm_jax.data.load``."""
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(
            f"delimiter (--delimiter in a shell) must be one character, got {delimiter!r}. Leave "
            "it out to have it found."
        )
    values, lines = array_module.array("d"), []
    with open(path, newline="", encoding=_encoding(path), errors="replace") as file:
        number, line = next(((i, line) for i, line in enumerate(file, 1) if line.strip()), (1, ""))
        if line.lstrip().startswith("#") and header is not True:
            raise ValueError(
                f"{str(path)!r}, line {number} is a comment, {line.strip()[:80]!r}: remove it, or "
                "say header=True, --header yes in a shell, if it names the columns."
            )
        if separator := re.fullmatch('"?sep=(.)"?', line.strip("\r\n")):
            raise ValueError(
                f"{str(path)!r}, line {number} is {separator[0]!r}, which is for Excel and no row: "
                f"remove it, and say delimiter={separator[1]!r}, --delimiter in a shell."
            )
        file.seek(0)
        found, delimiter = delimiter is None, delimiter or _detect_delimiter(line)
        text = map(str.strip, file) if delimiter == " " else file  # blanks at an end divide nothing
        reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True)
        rows = _rows(reader, path)
        first = next(rows, [])
        named = _is_header(first) if header is None else header
        names = first if named and first else None
        indexed = names is not None and _is_unnamed(names)
        ambiguous = found and delimiter == "," and names is None
        for row in rows if named else itertools.chain([first] if first else [], rows):
            if len(row) != len(first):
                raise ValueError(
                    f"{str(path)!r}, line {reader.line_num} has {len(row)} columns, the first line "
                    f"has {len(first)} (separated by {delimiter!r}): "
                    f"{delimiter.join(row)[:80]!r}. Make all lines equally long, or give the right "
                    "delimiter=, --delimiter in a shell."
                    + " If R wrote it, take write.csv, or write.table with col.names=NA: the names "
                    "of its rows have no name of their own."
                    * (named and len(row) == len(first) + 1)
                )
            ambiguous = ambiguous and bool(re.fullmatch(r"[-+]?\d+,\d+", ",".join(row)))
            if indexed and not _is_number(row[0]):
                row = ["nan", *row[1:]]  # words: an index, or else refused below
            values.extend(_numbers(row, path, reader.line_num, names))
            lines.append(reader.line_num)
    x = np.array(values).reshape(len(lines), len(first))
    if names is not None and indexed and len(x) and _is_index(x[:, 0]):
        if header is None and any(map(_is_number, names)) and not _counts(x[:, 0]):
            raise ValueError(
                f"{str(path)!r}, line 1 may name the columns by numbers, or be a row whose first "
                f"value is missing: {delimiter.join(names)[:80]!r}. Say which: {_REMEDY}."
            )
        _warn(f"{str(path)!r}: its first column has no name and is the index of the rows: left out")
        x, names = x[:, 1:], names[1:]
    elif header is None and names is None and _may_be_names(first, x):
        raise ValueError(
            f"{str(path)!r}, line 1 may be names of columns that are numbers, or a row: "
            f"{delimiter.join(first)[:80]!r}. Say which: {_REMEDY}."
        )
    elif ambiguous and len(x):
        raise ValueError(
            f"{str(path)!r} may be one column with decimal commas or marks of thousands, or two "
            f"columns of integers: {','.join(first)!r}. Write decimal points, or say "
            "delimiter=',', --delimiter , in a shell, if they are two."
        )
    check_numbers(x, repr(str(path)), lambda i: f"line {lines[i[0]]}, {_column(i[1], names)}")
    if len(x) >= 10 and x.shape[1] > 1 and _counts(x[:, 0]):
        _warn(
            f"{str(path)!r}, {_column(0, names)} counts the rows and is kept as a feature: if it "
            "is an index, take it out of the file"
        )
    return x


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # at the caller of load


def _encoding(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        mark = file.read(2)
    return "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _rows(reader: Any, path: pathlib.Path) -> Iterator[list[str]]:
    """Yield the lines of a ``csv.reader`` that are not blank."""
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield row
    except csv.Error as error:
        raise ValueError(
            f"{str(path)!r}, line {reader.line_num} is not a line of a table: {error}. Look for a "
            "quotation mark that is never closed, or mend the line."
        ) from error


def _detect_delimiter(first: str) -> str:
    unquoted = re.sub('"[^"]*"', "0", first)
    cells = unquoted.split()
    # Blanks only between numbers or quoted names: other names have some of their own.
    blanks = " " * (len(cells) > 1 and all(map(_is_number, cells)))
    return next((d for d in _DELIMITERS + blanks if d in unquoted.strip(" \r\n")), ",")


def _is_header(first: list[str]) -> bool:
    """Return whether no cell is a number, or only those after an empty corner, as of pandas."""
    if not any(map(_is_number, first)):
        return True
    return _is_unnamed(first) and all(cell.strip().isdecimal() for cell in first[1:])


def _is_unnamed(names: list[str]) -> bool:
    return len(names) > 1 and names[0].strip() in _UNNAMED


def _is_index(column: np.ndarray) -> bool:
    """Return whether these are all words (NaN), or whole numbers without repetition."""
    if np.isnan(column).all():
        return True
    whole = np.isfinite(column).all() and (column % 1 == 0).all()
    return whole and len(np.unique(column)) == len(column)


def _counts(column: np.ndarray) -> bool:
    """Return whether these are all words (NaN), or 0, 1, 2, ... or 1, 2, 3, ..., or fall so."""
    count = np.arange(len(column)) + (min(column[0], column[-1]) == 1)
    return np.isnan(column).all() or any(np.array_equal(column[::d], count) for d in (1, -1))


def _may_be_names(first: list[str], x: np.ndarray) -> bool:
    """Return whether the first row looks like numbers that name columns: 0, 1, 2 or 1990.5, 1989.5.

    Such rise or fall from column to column. They are suspicious where they are written as integers
    above fractions, where they count the columns, and where all lie farther from the values below
    than those from one another: ``1000 / N`` times as far, or in even steps, or close together. The
    first of N + 1 Cauchy draws is k times as far with probability ``0.5 / (k N)``; a single number
    must be whole above fractions as well, as heavy tails are common.
    """
    if len(x) < 3 or not np.isfinite(x).all():
        return False
    names, rest = x[0], x[1:]
    steps = np.diff(names)
    if not ((steps > 0).all() or (steps < 0).all()):
        return False
    low, high = rest.min(axis=0), rest.max(axis=0)
    distance, width = np.maximum(low - names, names - high), high - low
    far = (distance > width).all()
    very_far = (distance > width * max(1, 1000 / len(rest))).all()
    fractions = (rest % 1 == 0).mean(axis=0).prod() < 1e-3  # the share of rows of whole numbers
    integers = all(re.fullmatch(r"[-+]?\d+", cell.strip()) for cell in first)
    if integers and np.array_equal(names, np.arange(len(names))):
        beyond = len(rest) >= 10 and (distance > 0).all()
        return bool(fractions or far or beyond or len(first) > 2)
    if len(first) == 1:
        return bool(very_far and fractions and names[0] % 1 == 0)
    even = len(first) > 2 and np.allclose(steps, steps[0], rtol=0.01, atol=0)
    close = np.ptp(names) < distance.min() / 20
    return bool((integers and fractions) or very_far or (far and (even or close)))


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
        f"{str(path)!r}, line {line}, {_column(i, names)}: {row[i]!r} is not a number. "
        f"{_remedy(row[i].strip())}"
    )


def _remedy(cell: str) -> str:
    """Return what to do about a cell that is not a number."""
    if cell.startswith("#"):
        return "Lines of comments are not read: remove them."
    if re.fullmatch(r"[-+]?\d+,\d+", cell):
        return (
            "Numbers are written with decimal points and without marks of thousands: replace the "
            f"comma, {cell.replace(',', '.')} or {cell.replace(',', '')}."
        )
    if re.fullmatch(r"[-+]?\d{1,3}([,.' ]\d{3})+([.,]\d+)?", cell):
        return "Numbers are written without marks of thousands: remove them."
    return (
        "Encode categories as numbers, fill in missing values, write decimal points, or give the "
        "right delimiter= or header=, --delimiter or --header in a shell."
    )


def _column(index: int, names: list[str] | None) -> str:
    return f"column {index + 1}" + (f" ({names[index]!r})" if names else "")
