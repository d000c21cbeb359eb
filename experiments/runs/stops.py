"""Errors that end in one line where the user can mend what is wrong, and Ctrl-C at once."""

import contextlib
import logging
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

_INTERRUPTED = 130  # the exit code, as that of shells


def run(main: Callable[[list[str]], None]) -> None:
    """Run a program with its command line, and leave at once where the user interrupted it.

    XLA may still be computing then, in threads that crash when Python is taken down around them.
    """
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        if stop.code != _INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr: exit code 2 for what the user can mend.

    This is for what options, data and files can be wrong about. What comes after them goes under
    ``one_line_stops``, so that an error in the program shows where it is.
    """
    with one_line_stops(), _one_line_warnings():
        try:
            yield
        except (ValueError, ImportError, OSError) as error:
            sys.exit(_fail(error, 2))


@contextlib.contextmanager
def one_line_stops(next_step: str = "") -> Iterator[None]:
    """End the program with one line where it cannot go on.

    That is where numbers are no longer finite, a file cannot be written, or the user interrupts.

    Args:
        next_step: what the user can do in the last two cases.
    """
    # Here Orbax logs, with tracebacks, what it raises later.
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "concurrent.futures")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except FloatingPointError as error:
        sys.exit(_fail(error, 1))
    except OSError as error:
        sys.exit(_fail(f"{error}. {next_step}", 1))
    except KeyboardInterrupt:
        sys.exit(_fail(f"interrupted. {next_step}" if next_step else "interrupted", _INTERRUPTED))
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print what the user is warned of without the line of the program that does it."""

    def show(message, *_, **__):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def check_writable(output: pathlib.Path) -> None:
    """Make the folder of an output file; raise if the file cannot be written.

    Raises:
        ValueError: saying why, before anything is computed.
    """
    if output.is_dir():
        raise ValueError(
            f"--output {output} is a directory: name a file in it, such as {output / 'results'}"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {str(output.parent)!r} ({error.strerror}): name another place by "
            "--output"
        ) from error


def _fail(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
