"""Reading arrays and folders of images, every way in which they may be broken, light imports."""

import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from sm_jax.data import load

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
            with pytest.raises(
                ValueError, match=f"bad.{suffix}' is damaged or not a .{suffix} file"
            ):
                load(file)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder '.*absent.npy' \(resolved: /"):
        load(tmp_path / "absent.npy")
    (tmp_path / "x.mat").touch()
    with pytest.raises(ValueError, match=r"suffix '.mat': known are .npy, .npz, .csv, .tsv, .txt"):
        load(tmp_path / "x.mat")


# --- images ---------------------------------------------------------------------------------------


def save_image(file, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, **options)


GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)
RGB = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def test_a_folder_of_grey_images_in_the_order_of_names(tmp_path):
    for i, name in enumerate(["b.png", "a.bmp", "c.PNG"]):
        save_image(tmp_path / name, GRAY + i)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._a.png").write_bytes(b"of macOS")
    (tmp_path / "sub").mkdir()
    found = load(tmp_path)
    expected = np.stack([GRAY + 1, GRAY, GRAY + 2])[..., None]
    np.testing.assert_array_equal(found, expected, strict=True)


def test_a_folder_of_colour_images_some_grey(tmp_path):
    save_image(tmp_path / "a.png", RGB)
    save_image(tmp_path / "b.png", GRAY)
    Image.fromarray(RGB).quantize(16).save(tmp_path / "c.png")
    found = load(tmp_path)
    assert (found.shape, found.dtype) == ((3, 3, 4, 3), np.uint8)
    np.testing.assert_array_equal(found[0], RGB)
    np.testing.assert_array_equal(found[1], np.repeat(GRAY[..., None], 3, axis=2))
    np.testing.assert_allclose(found[2], RGB, atol=8)  # a palette of 16 colors


def test_gifs_are_read(tmp_path):
    """Their palettes are colors, of gray images too; one of several frames is refused."""
    save_image(tmp_path / "a.gif", GRAY)
    save_image(tmp_path / "b.jfif", GRAY, format="png")
    np.testing.assert_array_equal(load(tmp_path), np.stack([GRAY, GRAY])[..., None], strict=True)
    save_image(tmp_path / "c.gif", np.full((3, 4, 3), [7, 8, 9]))
    found = load(tmp_path)
    assert found.shape == (3, 3, 4, 3)
    np.testing.assert_array_equal(found[0], np.repeat(GRAY[..., None], 3, axis=2))
    np.testing.assert_array_equal(found[2, 0, 0], [7, 8, 9])
    frames = [Image.fromarray(GRAY + i) for i in range(3)]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"d.gif' holds 3 images: write each to a file of"):
        load(tmp_path)


def test_images_that_are_left_out_are_named(tmp_path):
    save_image(tmp_path / "a.png", GRAY)
    for name in ("b.svg", "c.HEIC", "d.heic", "notes.txt", ".DS_Store"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"are left out \(2 .heic, 1 .svg\): convert"):
        assert load(tmp_path).shape == (1, 3, 4, 1)
    (tmp_path / "a.png").unlink()
    with pytest.warns(UserWarning, match="1 .svg"), pytest.raises(ValueError, match="no images"):
        load(tmp_path)


def test_images_of_several_sizes(tmp_path):
    save_image(tmp_path / "a.png", GRAY)
    save_image(tmp_path / "b.png", GRAY.T)
    with pytest.raises(ValueError, match=r"a.png' is 3x4, '.*b.png' is 4x3 \(height x width\): cr"):
        load(tmp_path)


def test_images_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images \(.bmp, .*sub-folders are not searched"):
        load(tmp_path)
    file = tmp_path / "a.png"
    for mode in ("RGBA", "CMYK"):
        path = file if mode == "RGBA" else file.with_suffix(".tiff")
        Image.new(mode, (2, 2)).save(path)
        with pytest.raises(ValueError, match=rf"a.*neither 8-bit gray nor RGB but '{mode}'.*conv"):
            load(tmp_path)
        path.unlink()
    save_image(file, GRAY, transparency=3)
    with pytest.raises(ValueError, match="but 'L', perhaps with transparency"):
        load(tmp_path)
    save_image(file, np.random.default_rng(0).integers(0, 255, (50, 50)))
    for content in (b"hello", file.read_bytes()[:500]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.png' is not a readable image: .*\. Remove it"):
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
    """None is cut: Pillow reads 16-bit colors as if they had 8, and clips 16-bit gray to white."""
    deep = np.arange(36).reshape(3, 4, 3) * 1000
    contents = {
        "a.png": png_of_16_bits(deep),
        "a.ppm": b"P6 4 3 65535\n" + deep.astype(">u2").tobytes(),
        "b.ppm": b"P6 4 3 1023\n" + (deep % 1024).astype(">u2").tobytes(),
        "a.pgm": b"P5 4 3 65535\n" + deep[..., 0].astype(">u2").tobytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for mode, name in (("I;16", "gray.png"), ("F", "real.tiff")):
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
    save_image(tmp_path / "a.png", GRAY, exif=exif)
    np.testing.assert_array_equal(load(tmp_path)[0, :, :, 0], np.rot90(GRAY, -1))


def test_images_of_several_pages(tmp_path):
    pages = [Image.fromarray(GRAY + i) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a.tif' holds 3 images: write each to a file of"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is one image: give the folder"):
        load(tmp_path / "a.tif")


def test_an_image_too_large_to_open(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", GRAY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match=r"a.png' is not a readable image: .*bomb.*\. Remove it"):
        load(tmp_path)


def test_images_name_the_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="reading images needs Pillow: pip install pillow"):
        load(tmp_path)


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
