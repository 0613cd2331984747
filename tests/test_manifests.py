"""Lists of videos are read as spreadsheets, scripts and people write them; what could be meant two
ways is refused."""

import codecs

import numpy as np
import pytest

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import decoded
from jepa_wm.data.videos import find

NAMES = ("v/0.mp4", "v/ein Film.mp4", "v/Käse, alt.mp4", "v/a;b.mp4")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "v").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def listed(root, content, name="list.csv"):
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(entry.path.relative_to(root).as_posix(), entry.label) for entry in find(root / name)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("heading", ["", "path,label", "Path,Label", '"path","label"'])
def test_marks_line_ends_and_headings(root, encoding, end, heading):
    lines = [heading] * bool(heading) + [
        "v/0.mp4,a",
        '"v/Käse, alt.mp4",Käse',
        "",
        ",,",
        "v/ein Film.mp4,a b,",
    ]
    found = listed(root, end.join(lines).encode(encoding))
    assert found == [("v/0.mp4", "a"), ("v/Käse, alt.mp4", "Käse"), ("v/ein Film.mp4", "a b")]


def test_big_endian_marks(root):
    text = "v/0.mp4,a\n"
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")):
        assert listed(root, mark + text.encode(encoding)) == [("v/0.mp4", "a")]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("heading", [False, True])
def test_semicolons_and_tabs_as_spreadsheets_write_them(root, separator, heading):
    rows = [["path", "label"]] * heading + [
        ["v/0.mp4", "a"],
        ["v/Käse, alt.mp4", "b c"],
        ["v/ein Film.mp4", ""],
    ]
    found = listed(root, "\r\n".join(separator.join(row) for row in rows))
    assert found == [("v/0.mp4", "a"), ("v/Käse, alt.mp4", "b c"), ("v/ein Film.mp4", None)]
    noted = listed(root, f"sep={separator}\r\n" + "\r\n".join(separator.join(row) for row in rows))
    assert noted == found


def test_names_may_hold_the_other_separators(root):
    assert listed(root, "v/a;b.mp4,x\nv/0.mp4,y\n") == [("v/a;b.mp4", "x"), ("v/0.mp4", "y")]
    assert listed(root, "v/a;b.mp4\nv/0.mp4\n") == [("v/a;b.mp4", None), ("v/0.mp4", None)]
    assert listed(root, "v/a;b.mp4 3\n") == [("v/a;b.mp4", "3")]
    (root / "#1.mp4").write_bytes(b"")
    assert listed(root, "#1.mp4,x\n# a remark\n") == [("#1.mp4", "x")]


def test_columns_count_by_their_heading_wherever_they_stand(root):
    assert listed(root, ",label,path,seconds\n0,a,v/0.mp4,3\n1,,v/ein Film.mp4,4\n") == [
        ("v/0.mp4", "a"), ("v/ein Film.mp4", None),
    ]  # fmt: skip
    assert listed(root, "path label\nv/0.mp4 a\n", "list.txt") == [("v/0.mp4", "a")]
    assert listed(root, "path\nv/0.mp4\n") == [("v/0.mp4", None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "v/Käse, alt.mp4,a\n".encode("cp1252"),
            r"list\.csv: is not UTF-8 text \(.* at byte 3\); save it as UTF-8",
        ),
        (
            "v/0.mp4,a\n".encode("utf-16-le"),
            r"list\.csv: is not UTF-8 text \(character 1 is a zero\); save it",
        ),
        (
            "video,class\nv/0.mp4,a\n",
            r"line 1: 'video' is no video; call columns path,label in a heading",
        ),
        ("v/0.mp4,a,b\n", r"line 1: 3 fields instead of path,label; quote commas"),
        ("v/0.mp4,a\n,b\n", r"line 2: has no path"),
        ('v/0.mp4,a\n"v/0.mp4,b\nv/0.mp4,c\n', r"line 3: a quote before it is not closed"),
        ("label,path\na,v/0.mp4,3\n", r"line 2: 3 fields below 2 in the heading"),
    ],
)
def test_what_is_not_clear_is_refused_in_one_line(root, content, said):
    with pytest.raises(UserError, match=said) as error:
        listed(root, content)
    assert "\n" not in str(error.value)


def test_a_missing_number_is_no_class(root):
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(
        pa.table({"path": ["v/0.mp4", "v/a;b.mp4"], "label": [1.0, np.nan]}), root / "list.parquet"
    )
    assert [entry.label for entry in find(root / "list.parquet")] == ["1.0", None]


def test_a_config_may_begin_with_a_mark(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "mine.yaml").write_bytes("seed: 7\n".encode(encoding))
        assert load_config(tmp_path / "mine.yaml").seed == 7
    (tmp_path / "mine.yaml").write_bytes("seed: 7 # größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.yaml: is not UTF-8 text"):
        load_config(tmp_path / "mine.yaml")
    assert decoded(b"\xef\xbb\xbfa", "it") == "a" and decoded(b"", "it") == ""
