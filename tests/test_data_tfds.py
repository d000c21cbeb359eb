"""Reading TensorFlow Datasets: real and written ones, without TensorFlow."""

import io
import json
import logging
import sys

import numpy as np
import pytest
from PIL import Image

from sm_jax.data import load_tfds
from tests.test_data_sources import modules_after


def prepare(data_dir, name, images, labels=None, version="1.0.0", shape=None, file_format=None):
    """Write a data set as TFDS does, in array_record, without TensorFlow."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / version
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(str(folder / "x-train.array_record-00000-of-00001"), "group_size:1")
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "png")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        if labels is not None:
            example.features.feature["label"].int64_list.value.append(labels[i])
        writer.write(example.SerializeToString())
    writer.close()

    package = "tensorflow_datasets.core.features"
    dimensions = [str(n or -1) for n in shape or images.shape[1:]]
    features = {
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"shape": {"dimensions": dimensions}, "dtype": "uint8"},
        }
    }
    if labels is not None:
        features["label"] = {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{package}.features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    split = {
        "name": "train",
        "shardLengths": [str(len(images))],
        "filepathTemplate": "x-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": name.split("/")[0], "version": version, "splits": [split]}
    info["fileFormat"] = file_format or "array_record"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


IMAGES = np.random.default_rng(0).integers(0, 256, (2300, 4, 5, 3)).astype(np.uint8)
LABELS = np.arange(2300) % 10


def test_tfds_images_and_labels(tmp_path):
    prepare(tmp_path, "toys", IMAGES, LABELS)
    images, labels = load_tfds("toys", data_dir=tmp_path)
    np.testing.assert_array_equal(images, IMAGES, strict=True)
    np.testing.assert_array_equal(labels, LABELS, strict=True)
    images, labels = load_tfds("toys", split="train[5:8]", data_dir=str(tmp_path))
    np.testing.assert_array_equal(images, IMAGES[5:8], strict=True)
    np.testing.assert_array_equal(labels, LABELS[5:8], strict=True)


def test_tfds_versions_configs_and_no_labels(tmp_path):
    for i, version in enumerate(["2.0.0", "10.0.0", "9.9.9"]):
        prepare(tmp_path, "toys", IMAGES[i : i + 1, ..., :1], version=version)
    prepare(tmp_path, "toys/small", IMAGES[3:5])
    images, labels = load_tfds("toys", data_dir=tmp_path)
    np.testing.assert_array_equal(images, IMAGES[1:2, ..., :1])
    assert labels is None
    images, _ = load_tfds("toys:2.0.0", data_dir=tmp_path)
    np.testing.assert_array_equal(images, IMAGES[:1, ..., :1])
    images, _ = load_tfds("toys/small", data_dir=tmp_path)
    np.testing.assert_array_equal(images, IMAGES[3:5])


def test_tfds_that_is_not_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"no data set 'toys' .*; nothing is there.*tfds build toys"
    ):
        load_tfds("toys", data_dir=tmp_path / "absent")
    prepare(tmp_path, "toys", IMAGES[:2])
    prepare(tmp_path, "toys", IMAGES[:2], version="2.0.0")
    (tmp_path / "toys" / "incomplete.ABC").mkdir()
    (tmp_path / "toys" / "incomplete.ABC" / "dataset_info.json").touch()
    for name in ("tots", "toys:3.0.0", "toys/small"):
        with pytest.raises(
            ValueError, match=rf"no data set '{name}' .*; toys:1.0.0, toys:2.0.0 is there"
        ):
            load_tfds(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"Unknown split 'test'.*\['train'\]"):
        load_tfds("toys", split="test", data_dir=tmp_path)


def test_tfds_of_another_kind(tmp_path):
    prepare(tmp_path, "records", IMAGES[:2], file_format="tfrecord")
    with pytest.raises(ValueError, match=r"prepared as tfrecord.*--file_format=array_record"):
        load_tfds("records", data_dir=tmp_path)
    prepare(tmp_path, "sizes", IMAGES[:2], shape=(None, None, 3))
    with pytest.raises(ValueError, match=r"(?s)one image of a fixed size per example.*None"):
        load_tfds("sizes", data_dir=tmp_path)
    folder = prepare(tmp_path, "two", IMAGES[:2])
    features = json.loads((folder / "features.json").read_text())
    both = features["featuresDict"]["features"]
    both["second"] = both["image"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="must have one image of a fixed size"):
        load_tfds("two", data_dir=tmp_path)


def test_tfds_gives_no_advice_but_warns(tmp_path, monkeypatch):
    from absl import logging as absl_logging
    from tensorflow_datasets.core.features import image_feature

    def log_always(level, message, _):  # not only at the first of a process
        absl_logging.log(level, message)
        absl_logging.log(level, "a warning")

    logger, messages = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    monkeypatch.setattr(absl_logging, "log_first_n", log_always)
    monkeypatch.setattr(image_feature, "cv2", None)
    before = list(logger.filters)
    try:
        prepare(tmp_path, "toys", IMAGES[:2])
        load_tfds("toys", data_dir=tmp_path)
    finally:
        logger.removeHandler(handler)
    assert messages == ["a warning"] * 2
    assert logger.filters == before


@pytest.mark.parametrize("missing", ["array_record", "tensorflow_datasets", "PIL"])
def test_tfds_names_the_missing_package(missing, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'sm_jax\[tfds\]'"):
        load_tfds("toys", data_dir=tmp_path)


def test_real_mnist(data_dir):
    """Pixel for pixel MNIST's test set, whose order TFDS shuffles: sums that no order changes."""
    images, labels = load_tfds("mnist", split="test", data_dir=data_dir / "tfds")
    assert (images.shape, images.dtype) == ((10000, 28, 28, 1), np.uint8)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == counts
    np.testing.assert_allclose(images.mean(), 33.791224489795916, rtol=1e-12)


def test_reading_tfds_imports_no_tensorflow(tmp_path):
    prepare(tmp_path, "toys", IMAGES[:2])
    code = f"from sm_jax.data import load_tfds; load_tfds('toys', data_dir={str(tmp_path)!r})"
    modules = modules_after(code)
    assert "tensorflow_datasets" in modules
    assert "tensorflow" not in modules
