"""Images from TensorFlow Datasets prepared as array_record, read without TensorFlow."""

import contextlib
import importlib
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from sm_jax.data._values import check_numbers

_CHUNK = 1000  # records decoded per call, bounding the memory beside the result


def load_tfds(
    name: str, *, split: str = "train", data_dir: str | os.PathLike
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a set of images that TensorFlow Datasets prepared as array_record.

    TensorFlow is not imported. The data set is found by its folder ``data_dir/name/version`` (or
    ``data_dir/name/config/version``), so it need not be one that TFDS knows.

    Args:
        name: ``"mnist"``, or ``"name/config"``, optionally with a version, ``"mnist:3.0.1"``; the
            latest one otherwise.
        split: ``"train"``, ``"test"``, or a part such as ``"train[:1000]"``.
        data_dir: the folder of prepared data sets.

    Returns:
        ``(images, labels)``: images ``[N, H, W, C]`` in the stored dtype, uint8 as a rule; labels
        int64 ``[N]``, None where the set has no ``label``.

    Raises:
        ValueError: the data set or the split is not there, was prepared in another format, or has
            not exactly one image of a fixed size per example.
        ImportError: tensorflow_datasets, array_record or Pillow is not installed.

    Example:
        >>> images, labels = load_tfds("mnist", data_dir="data/tfds")  # doctest: +SKIP
        >>> images.shape, labels.shape  # doctest: +SKIP
        ((60000, 28, 28, 1), (60000,))

    References:
        https://www.tensorflow.org/datasets/tfless_tfds
    """
    tfds = _import_tfds()
    builder = tfds.builder_from_directory(_find(name, pathlib.Path(data_dir).expanduser()))
    info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{info.full_name} is prepared as {info.file_format.value}, which needs TensorFlow: "
            "prepare it as array_record, tfds build --file_format=array_record."
        )
    image = _image_feature(info, tfds)
    source = builder.as_data_source(split=split)
    images = np.empty((len(source), *info.features[image].shape), info.features[image].np_dtype)
    labels = np.empty(len(source), np.int64) if "label" in info.features else None
    with _without_advice():
        for start in range(0, len(source), _CHUNK):
            stop = min(start + _CHUNK, len(source))
            for i, record in enumerate(source.__getitems__(range(start, stop)), start):
                images[i] = record[image]
                if labels is not None:
                    labels[i] = record["label"]
    check_numbers(images, f"{info.full_name}, split {split!r},")
    return images, labels


def _import_tfds():
    try:
        for needed in ("array_record.python.array_record_data_source", "PIL.Image"):
            importlib.import_module(needed)  # TFDS would hide that it is missing
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"reading TensorFlow Datasets: {error}. Run pip install 'sm_jax[tfds]'."
        ) from error


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keep TFDS from recommending OpenCV; all else that it logs passes."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("OpenCV is not installed")

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _find(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    prepared = {}  # (name, version) -> folder
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for file in data_dir.glob(pattern):
            folder = file.parent
            if all(part.isdigit() for part in folder.name.split(".")):
                key = folder.parent.relative_to(data_dir).as_posix()
                prepared[key, folder.name] = folder
    wanted, _, version = name.partition(":")
    matches = [key for key in prepared if key[0] == wanted and version in ("", key[1])]
    if not matches:
        there = ", ".join(sorted(f"{key}:{version}" for key, version in prepared)) or "nothing"
        raise ValueError(
            f"no data set {name!r} is prepared in {str(data_dir)!r}; {there} is there. Name one of "
            f"these or another data_dir, or prepare it where TensorFlow is installed: tfds build "
            f"{wanted} --file_format=array_record --data_dir={data_dir}."
        )
    return prepared[max(matches, key=lambda key: [int(n) for n in key[1].split(".")])]


def _image_feature(info, tfds) -> str:
    features = info.features
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if len(images) != 1 or None in features[images[0]].shape:
        raise ValueError(
            f"{info.full_name} must have one image of a fixed size per example, got {features}: "
            "write its images to a folder, all of one size, and load that."
        )
    return images[0]
