"""What values an option may have: checked as soon as the command line is read."""

import dataclasses
import math
from typing import Any

# The least that a count may be, by the name of its option.
_LEAST = {
    "width": 1,
    "depth": 0,
    "multipliers": 1,
    "num_steps": 1,
    "batch_size": 1,
    "num_samples": 1,
    "sampling_steps": 1,
    "likelihood_steps": 1,
    "likelihood_examples": 1,
    "num_estimates": 1,
    "every": 1,
    "num_train": 1,
    "num_held_out": 1,
    "max_examples": 1,
    "num": 1,
    "completions": 1,
}
# Lowest and highest value, and whether these themselves are allowed.
_RANGES = {
    "dropout": (0, 1, True, False),
    "label_dropout": (0, 1, False, False),
    "learning_rate": (0, math.inf, False, False),
    "weight_decay": (0, math.inf, True, False),
    "ema_decay": (0, 1, True, False),
    "log_sigma_mean": (-math.inf, math.inf, False, False),
    "log_sigma_std": (0, math.inf, False, False),
    "held_out": (0, 1, False, False),
    "validation": (0, 1, True, False),
    "shift": (0, 7, True, True),
    "seed": (0, 2**32 - 1, True, True),
    "churn": (0, math.inf, True, False),
    "guidance": (-math.inf, math.inf, False, False),
}


def check(options: Any) -> None:
    """Raises unless every option of a dataclass, or of those within it, is within its limits.

    An option that was not given, None, is within them.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None:
                _check(field.name, number)


def _check(name: str, value: Any) -> None:
    option = "--" + name.replace("_", "-")
    if name in _LEAST and value < _LEAST[name]:
        raise ValueError(f"{option} must be at least {_LEAST[name]}, got {value}")
    if name not in _RANGES:
        return
    low, high, with_low, with_high = _RANGES[name]
    above = value >= low if with_low else value > low
    below = value <= high if with_high else value < high
    if above and below:
        return
    words = ["finite"] * math.isinf(high)
    if math.isfinite(low):
        words.append(f"{'at least' if with_low else 'above'} {low}")
    if math.isfinite(high):
        words.append(f"{'at most' if with_high else 'below'} {high}")
    raise ValueError(f"{option} must be {' and '.join(words)}, got {value}")
