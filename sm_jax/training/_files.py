"""Files that are complete or absent, also after a crash."""

import os
import pathlib


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically.

    The text goes to ``path`` + ``".partial"``, which is then renamed: whoever reads ``path`` finds
    the old text or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        text: what it is to hold.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "results.json")
        >>> write_text(path, "{}")
        >>> path.read_text()
        '{}'
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
