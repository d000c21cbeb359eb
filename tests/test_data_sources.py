"""Reading files: real and written ones, every way in which they may be broken, light imports."""

import io
import json
import logging
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sm_jax.data import _csv, load, load_tfds

# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64", "bool"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 2, 3)])
def test_npy_comes_as_stored(dtype, shape, tmp_path):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(load(str(tmp_path / "x.npy")), x, strict=True)


def test_foreign_byte_order_becomes_native(tmp_path):
    np.save(tmp_path / "x.npy", np.array([1.0, 2.0], ">f4"))
    found = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(found, np.array([1.0, 2.0], np.float32), strict=True)
    assert found.dtype.isnative


def test_npz_sole_or_named(tmp_path):
    one, two = np.arange(3.0), np.arange(4, dtype=np.uint8)
    np.savez(tmp_path / "one.npz", one=one)
    np.savez_compressed(tmp_path / "both.NPZ", one=one, two=two)
    (tmp_path / "both.NPZ.npz").rename(tmp_path / "both.NPZ")
    np.testing.assert_array_equal(load(tmp_path / "one.npz"), one, strict=True)
    np.testing.assert_array_equal(load(tmp_path / "both.NPZ", array="two"), two, strict=True)
    with pytest.raises(ValueError, match=r"the arrays \['one', 'two'\] and array= names none"):
        load(tmp_path / "both.NPZ")
    with pytest.raises(ValueError, match=r"\['one'\] and none is named 'x': name one of them"):
        load(tmp_path / "one.npz", array="x")


def test_real_npz(data_dir):
    found = load(data_dir / "cifar10_10k" / "cifar10_10k.npz", array="x_test")
    assert (found.shape, found.dtype) == ((1000, 32, 32, 3), np.uint8)


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        """Return what unpickling calls."""
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_objects_are_never_unpickled(suffix, tmp_path):
    file = tmp_path / f"x.{suffix}"
    {"npy": np.save, "npz": np.savez}[suffix](file, np.array([Bomb()], object))
    with pytest.raises(ValueError, match="holds Python objects, which are never unpickled: save"):
        load(file)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([[1.0, 2.0], [3.0, np.nan]], ValueError, r"1 NaN.* among 4.*\(nan\) at index \(1, 1\)"),
        ([[1.0, -np.inf], [np.nan, 3]], ValueError, r"2 NaN or inf.*\(-inf\) at index \(0, 1\)"),
        (np.zeros((0, 3)), ValueError, r"is empty, shape \(0, 3\)"),
        (np.zeros((3, 0)), ValueError, r"is empty, shape \(3, 0\)"),
        (1.0, ValueError, "got one number: add a first axis"),
        (["a", "b"], TypeError, "real numbers, got dtype <U1"),
        ([1j, 2j], TypeError, "got dtype complex128: stack its real and imaginary parts"),
        (np.array(["2020-01-01"], "datetime64[D]"), TypeError, r"got dtype datetime64\[D\]"),
        (np.zeros(2, [("a", float)]), TypeError, "real numbers, got dtype"),
    ],
)
def test_arrays_that_are_no_data(x, error, match, tmp_path):
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x)
    for file in ("x.npy", "x.npz"):
        with pytest.raises(error, match=f"{file}' .*{match}"):
            load(tmp_path / file)


def test_damaged_arrays(tmp_path):
    np.save(tmp_path / "good.npy", np.arange(100.0))
    np.savez_compressed(tmp_path / "good.npz", x=np.arange(100.0))
    for suffix in ("npy", "npz"):
        content = (tmp_path / f"good.{suffix}").read_bytes()
        damaged = bytearray(content)
        damaged[60:90] = b"\xff" * 30
        for broken in (b"", b"hello", content[:-40], bytes(damaged)):
            file = tmp_path / f"bad.{suffix}"
            file.write_bytes(broken)
            with pytest.raises(ValueError, match=f"bad.{suffix}' is damaged or no .{suffix} file"):
                load(file)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder '.*absent.npy' \(resolved: /"):
        load(tmp_path / "absent.npy")
    (tmp_path / "x.mat").touch()
    with pytest.raises(ValueError, match=r"suffix '.mat': known are .npy, .npz, .csv, .tsv, .txt"):
        load(tmp_path / "x.mat")


# --- csv ------------------------------------------------------------------------------------------


def write(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "x.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "a|b|c\n", '"a, b"|"c; d"|e\n'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_and_without_header(delimiter, header, end, tmp_path):
    text = (header + "1|2.5|-3e2\n4| 5 |6\n").replace("|", delimiter).replace("\n", end)
    expected = np.array([[1, 2.5, -300], [4, 5, 6]])
    np.testing.assert_array_equal(load(write(tmp_path, text)), expected, strict=True)


def test_csv_details(tmp_path):
    """A byte-order mark, Latin names, quoted numbers, blank lines, no last newline, one column."""
    found = load(write(tmp_path, '\n"höhe", "b, c"\n\n"1","2"\n\n3,4', "utf-8-sig"))
    np.testing.assert_array_equal(found, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(load(write(tmp_path, "höhe;b\n1;2", "latin-1")), [[1, 2]])
    np.testing.assert_array_equal(load(write(tmp_path, "a\n1\n2\n")), [[1], [2]])
    np.testing.assert_array_equal(load(write(tmp_path, "1|2\n"), delimiter="|"), [[1, 2]])
    np.testing.assert_array_equal(
        load(write(tmp_path, "x 2020\n1  2"), delimiter=" ", header=True), [[1, 2]]
    )
    np.testing.assert_array_equal(load(write(tmp_path, "1,2\n3,4\n"), header=True), [[3, 4]])


@pytest.mark.parametrize("corner", ["", '""', "Unnamed: 0"])
@pytest.mark.parametrize("names", ["a,b", "0,1", "1990,2000"])
@pytest.mark.parametrize("index", ["012", "123", ["x", "y y", "2020-01-03"]])
def test_the_index_of_the_rows_is_no_feature(corner, names, index, tmp_path):
    """As pandas (from 0) and R (from 1) write it, or dates and words."""
    rows = ["1.5,7", "1.5,5", "2,3"]
    lines = [f"{i},{row}" for i, row in zip(index, rows, strict=True)]
    file = write(tmp_path, "\n".join([f"{corner},{names}", *lines]))
    with pytest.warns(UserWarning, match="first column has no name and is the index.*left out"):
        found = load(file)
    np.testing.assert_array_equal(found, [[1.5, 7], [1.5, 5], [2, 3]])


def test_a_feature_without_a_name_is_kept(tmp_path):
    found = load(write(tmp_path, ",a\n1,2\n1,3\n"))  # repeated: no index
    np.testing.assert_array_equal(found, [[1, 2], [1, 3]])
    found = load(write(tmp_path, ",a\n0.5,2\n1,3\n"))
    np.testing.assert_array_equal(found, [[0.5, 2], [1, 3]])
    with pytest.warns(UserWarning, match="'id'. counts the rows and is kept as a feature"):
        found = load(write(tmp_path, "id,a\n" + "".join(f"{i},{i % 3}\n" for i in range(10))))
    assert found.shape == (10, 2)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0,1\n1,1\n0,0\n1,0\n" * 5, 20),  # ones and zeros
        ("1,2\n3,4\n5,6\n", 3),
        ("0,0.5\n1,0.25\n", 2),
        ("0.0,1.0\n0.5,2.5\n1.5,0.5\n", 3),
        ("5\n0.5\n0.25\n", 3),
    ],
)
def test_numbers_that_are_no_names(text, rows, tmp_path):
    assert len(load(write(tmp_path, text))) == rows


def test_names_that_are_numbers(tmp_path):
    file = write(tmp_path, "0,1\n.5,.25\n1,.5\n")
    np.testing.assert_array_equal(load(file, header=True), [[0.5, 0.25], [1, 0.5]])
    np.testing.assert_array_equal(load(file, header=False), [[0, 1], [0.5, 0.25], [1, 0.5]])


UNIFORM = np.random.default_rng(0).uniform(0.2, 0.9, (20, 4))


@pytest.mark.parametrize("rows", [UNIFORM, np.round(100 * UNIFORM), UNIFORM[:2]])
@pytest.mark.parametrize(
    "names",
    [
        "400.5,401.5,402.5,403.5",
        "4000,3998,3996,3994",
        "-1990,-1980,-1970,-1960",
        "1990.0,1991.0",
        "1.99e3,1.95e3",
        "2001.5,2003.25,2020.5",
    ],
)
def test_names_far_from_the_values(names, rows, tmp_path):
    rows = rows[:, : names.count(",") + 1]
    file = write(tmp_path, "\n".join([names, *(",".join(map(str, row)) for row in rows)]))
    with pytest.raises(ValueError, match=r"may be names.*header=True or.*--header yes or"):
        load(file)
    np.testing.assert_array_equal(load(file, header=True), rows)
    assert load(file, header=False).shape == (len(rows) + 1, rows.shape[1])


@pytest.mark.parametrize("names", ["-1,0,1", "1,0,-1", "2020", "-2020.0", "1,2", "70.5,200,9e5"])
def test_names_above_fractions(names, tmp_path):
    rows = UNIFORM[:, : names.count(",") + 1]
    file = write(tmp_path, "\n".join([names, *(",".join(map(str, row)) for row in rows)]))
    with pytest.raises(ValueError, match="line 1 may be names"):
        load(file)


@pytest.mark.parametrize("digits", [17, 3])
@pytest.mark.parametrize("law", ["standard_normal", "random", "lognormal", "standard_cauchy"])
def test_ordinary_rows_are_no_names(law, digits):
    """Tables of 1 to 5 columns, some with one scale for a row, so that outliers come together."""
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(2000):
        num_rows, num_columns = (10, 30, 100)[i % 3], 1 + i % 5
        x = getattr(rng, law)(size=(num_rows, num_columns))
        x *= np.abs(getattr(rng, law)(size=(num_rows, 1))) ** (i % 2)
        first = [f"{value:.{digits}g}" for value in x[0]]
        x = np.array([float(f"{value:.{digits}g}") for value in x.flat]).reshape(x.shape)
        refused += _csv._may_be_names(first, x)
    assert refused <= 2


def test_tables_by_other_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.savetxt(tmp_path / "x.txt", x)  # blanks between
    np.testing.assert_array_equal(load(tmp_path / "x.txt"), x)
    np.savetxt(tmp_path / "x.txt", x, fmt="%9.3f ", delimiter="  ")
    np.testing.assert_allclose(load(tmp_path / "x.txt"), x, atol=5.1e-4)
    np.savetxt(tmp_path / "x.tsv", x, delimiter="\t", header="a\tb b\tc", comments="")
    np.testing.assert_array_equal(load(tmp_path / "x.tsv"), x)
    for encoding in ("utf-16", "utf-8-sig"):
        np.testing.assert_array_equal(load(write(tmp_path, "hö;b\n1;2\n", encoding)), [[1, 2]])
    (tmp_path / "x.csv.gz").touch()
    with pytest.raises(ValueError, match=r"x.csv.gz' is compressed: unpack it"):
        load(tmp_path / "x.csv.gz")


@pytest.mark.parametrize(("colour", "rows"), [("red", 1599), ("white", 4898)])
def test_real_csv(colour, rows, data_dir):
    file = data_dir / "uci" / f"winequality-{colour}.csv"
    found = load(file)
    assert found.shape == (rows, 12)
    np.testing.assert_array_equal(found, np.loadtxt(file, delimiter=";", skiprows=1))


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("a,b\n1,2\n\n3,4,5\n", {}, r"line 4 has 3 columns, the first line has 2 .*','.*'3,4,5'"),
        ("1;2\n3\n", {}, "line 2 has 1 columns, the first line has 2"),
        ("a,b\n1,2\n3,x y\n", {}, r"line 3, column 2 \('b'\): 'x y' is no number"),
        ("1,2\n3,\n", {}, "line 2, column 2: '' is no number.*missing values"),
        ("1,2\n , \n", {}, "line 2, column 1: '' is no number"),
        ("1,2\n3,1_000\n", {}, "line 2, column 2: '1_000' is no number"),
        ("id,2020\n1,2\n", {}, r"line 1, column 1: 'id' is no number.*header="),
        ("a,b\n1,2\n", {"header": False}, "line 1, column 1: 'a' is no number"),
        ("1,5;2\n", {}, "line 1, column 1: '1,5' is no number.*decimal points"),
        ("1|2\n3|4\n", {}, "line 2, column 1 .*'3.4' is no number.*delimiter=.*--delimiter"),
        ("1;2\n1,5;2\n", {}, r"'1,5' is no number.*decimal points.*1\.5 or 15"),
        ('a;b\n"1,234.5";2\n', {}, "'1,234.5' is no number.*marks of thousands: remove them"),
        ("a,b\n1,2\n# x\n", {"header": True}, "line 3 has 1 columns"),
        ("a,b\n1,2\n# x,3\n", {}, "'# x' is no number. Lines of comments .* remove them"),
        ("0,1\n.5,.25\n1,.5\n", {}, "line 1 may be names.*header=True.*--header yes"),
        ("0\n.5\n.25\n", {}, "line 1 may be names"),
        ("1990,2000\n5,7\n6,3\n3,2\n", {}, "line 1 may be names"),
        ("0,1,2\n5,7,1\n6,3,2\n3,2,2\n", {}, "line 1 may be names"),
        (",2,3\n4,5,6\n8,5,6\n", {}, "line 1 may name .* or be a row .* missing.*--header"),
        (",a\n0.5,1\nx,2\n", {}, r"1 NaN .*line 3, column 1 \(''\)"),
        ("a,b\n1,2\n\n3,nan\n-inf,4\n", {}, r"2 NaN .*\(nan\) at line 4, column 2 \('b'\)"),
        ("# made by X\na,b\n1,2\n", {}, "line 1 is a comment, '# made by X': remove it.*header=T"),
        ("\n # units: cm; kg\na,b\n1,2\n", {}, "line 2 is a comment, '# units: cm; kg': remove"),
        ("# x y\n1.0 2.0\n", {}, "line 1 is a comment, '# x y'.*--header yes"),
        ("# x y\n1.0 2.0\n", {"delimiter": " ", "header": False}, "line 1 is a comment"),
        ("1,2\ninf,nan\n", {}, r"2 NaN .* among 4.*\(inf\) at line 2, column 1:"),
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b\n", {}, r"is empty, shape \(0, 2\)"),
        ('1,2\n3,"4' + 200_000 * "0", {}, r"line 2 is no line of a table: field .*quotation mark"),
    ],
)
def test_broken_csv(text, options, match, tmp_path):
    with pytest.raises(ValueError, match=f"x.csv'.*{match}"):
        load(write(tmp_path, text), **options)


def test_a_name_that_begins_like_a_comment(tmp_path):
    file = write(tmp_path, "# a,b\n1,2\n")
    np.testing.assert_array_equal(load(file, header=True), [[1, 2]])


@pytest.mark.parametrize("delimiter", ["", ", ", "\\t"])
def test_a_delimiter_is_one_character(delimiter, tmp_path):
    with pytest.raises(
        ValueError, match=r"one character, got '.*'\. Leave it out to have it found"
    ):
        load(write(tmp_path, "1,2\n"), delimiter=delimiter)


# --- images ---------------------------------------------------------------------------------------


def save_image(file, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, **options)


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
RGB = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def test_a_folder_of_grey_images_in_the_order_of_names(tmp_path):
    for i, name in enumerate(["b.png", "a.bmp", "c.PNG"]):
        save_image(tmp_path / name, GREY + i)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    found = load(tmp_path)
    expected = np.stack([GREY + 1, GREY, GREY + 2])[..., None]
    np.testing.assert_array_equal(found, expected, strict=True)


def test_a_folder_of_colour_images_some_grey(tmp_path):
    save_image(tmp_path / "a.png", RGB)
    save_image(tmp_path / "b.png", GREY)
    Image.fromarray(RGB).quantize(16).save(tmp_path / "c.png")
    found = load(tmp_path)
    assert (found.shape, found.dtype) == ((3, 3, 4, 3), np.uint8)
    np.testing.assert_array_equal(found[0], RGB)
    np.testing.assert_array_equal(found[1], np.repeat(GREY[..., None], 3, axis=2))
    np.testing.assert_allclose(found[2], RGB, atol=8)  # a palette of 16 colours


def test_gifs_are_read(tmp_path):
    """Their palettes are colours, of grey images too; one of several frames is refused."""
    save_image(tmp_path / "a.gif", GREY)
    save_image(tmp_path / "b.jfif", GREY, format="png")
    np.testing.assert_array_equal(load(tmp_path), np.stack([GREY, GREY])[..., None], strict=True)
    save_image(tmp_path / "c.gif", np.full((3, 4, 3), [7, 8, 9]))
    found = load(tmp_path)
    assert found.shape == (3, 3, 4, 3)
    np.testing.assert_array_equal(found[0], np.repeat(GREY[..., None], 3, axis=2))
    np.testing.assert_array_equal(found[2, 0, 0], [7, 8, 9])
    frames = [Image.fromarray(GREY + i) for i in range(3)]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"d.gif' holds 3 images: write each to a file of"):
        load(tmp_path)


def test_images_that_are_left_out_are_named(tmp_path):
    save_image(tmp_path / "a.png", GREY)
    for name in ("b.svg", "c.HEIC", "d.heic", "notes.txt", ".DS_Store"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"are left out \(2 .heic, 1 .svg\): convert"):
        assert load(tmp_path).shape == (1, 3, 4, 1)
    (tmp_path / "a.png").unlink()
    with pytest.warns(UserWarning, match="1 .svg"), pytest.raises(ValueError, match="no images"):
        load(tmp_path)


def test_images_of_several_sizes(tmp_path):
    save_image(tmp_path / "a.png", GREY)
    save_image(tmp_path / "b.png", GREY.T)
    with pytest.raises(ValueError, match=r"a.png' is 3x4, '.*b.png' is 4x3 \(height x width\): cr"):
        load(tmp_path)


def test_images_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images \(.bmp, .*sub-folders are not searched"):
        load(tmp_path)
    file = tmp_path / "a.png"
    for mode in ("RGBA", "CMYK"):
        path = file if mode == "RGBA" else file.with_suffix(".tiff")
        Image.new(mode, (2, 2)).save(path)
        with pytest.raises(ValueError, match=rf"a.*neither 8-bit grey nor RGB but '{mode}'.*conv"):
            load(tmp_path)
        path.unlink()
    save_image(file, GREY, transparency=3)
    with pytest.raises(ValueError, match="but 'L', perhaps with transparency"):
        load(tmp_path)
    save_image(file, np.random.default_rng(0).integers(0, 255, (50, 50)))
    for content in (b"hello", file.read_bytes()[:500]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.png' is no readable image: .*\. Remove it"):
            load(tmp_path)


def png_of_16_bits(pixels):
    """RGB [H, W, 3], which Pillow does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_images_of_more_than_8_bits(tmp_path):
    """None is cut: Pillow reads 16-bit colours as if they had 8, and clips 16-bit grey to white."""
    deep = np.arange(36).reshape(3, 4, 3) * 1000
    contents = {
        "a.png": png_of_16_bits(deep),
        "a.ppm": b"P6 4 3 65535\n" + deep.astype(">u2").tobytes(),
        "b.ppm": b"P6 4 3 1023\n" + (deep % 1024).astype(">u2").tobytes(),
        "a.pgm": b"P5 4 3 65535\n" + deep[..., 0].astype(">u2").tobytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for mode, name in (("I;16", "grey.png"), ("F", "real.tiff")):
        Image.new(mode, (4, 3)).save(tmp_path / name)
    for file in sorted(tmp_path.iterdir()):
        folder = tmp_path / f"of {file.name}"
        folder.mkdir()
        file.rename(folder / file.name)
        with pytest.raises(ValueError, match=f"{file.name}' has more than 8 bits .*as an array"):
            load(folder)
    folder = tmp_path / "levels"
    folder.mkdir()
    (folder / "a.ppm").write_bytes(b"P6 4 3 255\n" + RGB.tobytes())
    np.testing.assert_array_equal(load(folder), RGB[None])


def test_images_are_upright(tmp_path):
    """EXIF's orientation 6: the first row of the pixels is the right side of the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "a.png", GREY, exif=exif)
    np.testing.assert_array_equal(load(tmp_path)[0, :, :, 0], np.rot90(GREY, -1))


def test_images_of_several_pages(tmp_path):
    pages = [Image.fromarray(GREY + i) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a.tif' holds 3 images: write each to a file of"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is one image: give the folder"):
        load(tmp_path / "a.tif")


def test_an_image_too_large_to_open(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match=r"a.png' is no readable image: .*bomb.*\. Remove it"):
        load(tmp_path)


# --- TensorFlow Datasets --------------------------------------------------------------------------


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


def test_images_name_the_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="reading images needs Pillow: pip install pillow"):
        load(tmp_path)


def test_real_mnist(data_dir):
    """Pixel for pixel MNIST's test set, whose order TFDS shuffles: sums that no order changes."""
    images, labels = load_tfds("mnist", split="test", data_dir=data_dir / "tfds")
    assert (images.shape, images.dtype) == ((10000, 28, 28, 1), np.uint8)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == counts
    np.testing.assert_allclose(images.mean(), 33.791224489795916, rtol=1e-12)


# --- imports --------------------------------------------------------------------------------------


def modules_after(code):
    code += "\nimport sys; print(' '.join(sys.modules))"
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_data_module_is_light():
    heavy = {"flax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "PIL", "pandas"}
    assert not heavy & modules_after("import sm_jax.data")


def test_reading_tfds_imports_no_tensorflow(tmp_path):
    prepare(tmp_path, "toys", IMAGES[:2])
    code = f"from sm_jax.data import load_tfds; load_tfds('toys', data_dir={str(tmp_path)!r})"
    modules = modules_after(code)
    assert "tensorflow_datasets" in modules
    assert "tensorflow" not in modules
