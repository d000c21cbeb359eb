"""Tables that a script writes into BENCHMARKS.md, between two markers that bear its name."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "BENCHMARKS.md"


def parts(script: str, path: pathlib.Path) -> tuple[str, str]:
    """Return the text up to the table of a script, and that after it, the markers included.

    Raises:
        ValueError: if there is no such file, or not one place to write to in it.
    """
    begin, end = f"<!-- begin: {script} -->", f"<!-- end: {script} -->"
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r} to write to: run in a checkout.")
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{path} has no lines {begin!r} and {end!r}, once each and in this order, to write "
            "between: add them."
        )
    before, rest = text.split(begin)
    return before + begin, end + rest.split(end)[1]


def write(script: str, lines: list[str], path: pathlib.Path) -> None:
    """Replace the table of a script.

    Raises:
        ValueError: as ``parts`` does.
    """
    before, after = parts(script, path)
    path.write_text("\n".join([before, *lines, after]))


def check(script: str, path: pathlib.Path, *, only: str) -> None:
    """Raise if a table cannot be written, or would be of some rows only: before it is measured.

    Raises:
        ValueError: saying why.
    """
    if only:
        raise ValueError(
            f"--write replaces the whole table, and --only {only!r} measures a part of it: leave "
            "one of them out."
        )
    parts(script, path)
