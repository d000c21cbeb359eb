"""Reading tables: real and written ones, and every way in which they may be broken."""

import numpy as np
import pytest

from sm_jax.data import _csv, load


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
    delimiter = "," if "," in text else None  # as two columns of integers may be one of 1,5
    assert len(load(write(tmp_path, text), delimiter=delimiter)) == rows


@pytest.mark.parametrize("text", ["1,5\n2,25\n-3,125\n", "1,234\n22,050\n"])
def test_one_number_or_two(text, tmp_path):
    """Decimal commas, and marks of thousands, in a single column without a name."""
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"decimal commas .* '1,.*--delimiter ,"):
        load(file)
    for options in ({"delimiter": ","}, {"header": True}):
        assert load(file, **options).shape[1] == 2
    for other in ("a,b\n" + text, text + "1,-5\n", text + "1,0.5\n", text.replace(",", "\t")):
        assert load(write(tmp_path, other)).shape[1] == 2


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("step", [1, -1])
def test_a_column_that_counts_is_told_of(first, step, tmp_path):
    count = np.arange(first, first + 20)[::step]
    file = write(tmp_path, "id,a\n" + "".join(f"{i},{i * i % 7}\n" for i in count))
    with pytest.warns(UserWarning, match="'id'. counts the rows and is kept as a feature"):
        assert load(file).shape == (20, 2)
    file = write(tmp_path, "id,a\n" + "".join(f"{i},{i * i % 7}\n" for i in count + 2))
    assert load(file).shape == (20, 2)  # without a warning


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


@pytest.mark.parametrize(("color", "rows"), [("red", 1599), ("white", 4898)])
def test_real_csv(color, rows, data_dir):
    file = data_dir / "uci" / f"winequality-{color}.csv"
    found = load(file)
    assert found.shape == (rows, 12)
    np.testing.assert_array_equal(found, np.loadtxt(file, delimiter=";", skiprows=1))


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("a,b\n1,2\n\n3,4,5\n", {}, r"line 4 has 3 columns, the first line has 2 .*','.*'3,4,5'"),
        ("1;2\n3\n", {}, "line 2 has 1 columns, the first line has 2"),
        ("a,b\n1,2\n3,x y\n", {}, r"line 3, column 2 \('b'\): 'x y' is not a number"),
        ("1,2\n3,\n", {}, "line 2, column 2: '' is not a number.*missing values"),
        ("1,2\n , \n", {}, "line 2, column 1: '' is not a number"),
        ("1,2\n3,1_000\n", {}, "line 2, column 2: '1_000' is not a number"),
        ("id,2020\n1,2\n", {}, r"line 1, column 1: 'id' is not a number.*header="),
        ("a,b\n1,2\n", {"header": False}, "line 1, column 1: 'a' is not a number"),
        ("1,5;2\n", {}, "line 1, column 1: '1,5' is not a number.*decimal points"),
        ("1|2\n3|4\n", {}, "line 2, column 1 .*'3.4' is not a number.*delimiter=.*--delimiter"),
        ("1;2\n1,5;2\n", {}, r"'1,5' is not a number.*decimal points.*1\.5 or 15"),
        ('a;b\n"1,234.5";2\n', {}, "'1,234.5' is not a number.*marks of thousands: remove them"),
        ("a,b\n1,2\n# x\n", {"header": True}, "line 3 has 1 columns"),
        ("a,b\n1,2\n# x,3\n", {}, "'# x' is not a number. Lines of comments .* remove them"),
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
        ("sep=;\na;b\n1;2\n", {}, "line 1 is 'sep=;', which is for Excel.*remove it.*';'"),
        ('"sep=,"\r\na,b\r\n1,2\r\n', {}, "which is for Excel .*delimiter=','"),
        ('"a" "b c"\n"1" 1.5 2\n', {}, "separated by ' '.*write.csv, or write.table"),
        ('"a","b"\n"1",1.5,2\n', {}, "line 2 has 3 columns.*write.csv, or write.table"),
        ("1,2\ninf,nan\n", {}, r"2 NaN .* among 4.*\(inf\) at line 2, column 1:"),
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b\n", {}, r"is empty, shape \(0, 2\)"),
        (
            '1,2\n3,"4' + 200_000 * "0",
            {},
            r"line 2 is not a line of a table: field .*quotation mark",
        ),
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
