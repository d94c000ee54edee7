import ast
import json

import pytest

from rlhf_lib.grading.notebook import Cell, cells_of, statements
from rlhf_lib.grading.submissions import UnreadableError
from tests.grading.made import cell, notebook


def sources(text):
    return [one.source for one in cells_of("n.ipynb", text if isinstance(text, bytes) else text.encode()) if one.code]


def test_cells_of_a_notebook_in_whatever_form_it_comes():
    text = notebook("x = 1\ny = 2", cell("# title", kind="markdown"), cell("z = 3", "gae"))
    assert cells_of("n.ipynb", text.encode())[2] == Cell("n.ipynb, cell 3", "z = 3", True, "gae")
    for content in (text, text.replace("\\n", "\\r\\n"), text.replace("\\n", "\\r")):
        assert sources(content) == ["x = 1\ny = 2", "z = 3"]
    assert sources(b"\xef\xbb\xbf" + text.encode()) == ["x = 1\ny = 2", "z = 3"]
    assert sources(text.encode("utf-16")) == ["x = 1\ny = 2", "z = 3"]
    assert sources(text.replace("\n", "\r\n")) == ["x = 1\ny = 2", "z = 3"]


def test_lines_in_a_list_old_formats_and_what_editors_leave_in_metadata():
    assert sources(notebook(cell(["x = 1\n", "y = 2"]))) == ["x = 1\ny = 2"]
    old = {
        "nbformat": 3,
        "worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1"]}, {"cell_type": "heading", "source": "t"}]}],
    }
    assert sources(json.dumps(old)) == ["x = 1"]
    colab = notebook(
        cell("x = 1", id="abc", metadata={"id": "abc", "colab": {"x": 1}}), metadata={"widgets": {"application/x": {}}}
    )
    assert sources(colab) == ["x = 1"]
    assert sources(notebook(cell("x = 1", metadata=None), cell(None), cell(3), cell(["a", 4, "b"]))) == ["x = 1", "", "", "ab"]


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("n.ipynb", b"", "empty"),
        ("n.ipynb", b"  \n", "empty"),
        ("n.ipynb", b'{"cells": [', "damaged"),
        ("n.ipynb", b"[1]", "without cells"),
        ("n.ipynb", b"{}", "without cells"),
        ("n.ipynb", b"<html>", "a web page"),
        ("n.ipynb", b'{"cells": "\xff"}', "not UTF-8 at byte 11"),
        ("n.ipynb", b"[" * 100_000, "damaged"),
        ("report.pdf", b"%PDF", "no notebook"),
        ("n.ipynb", b'{"cells": 4}', "without cells"),
    ],
)
def test_what_cannot_be_read_says_why(name, content, why):
    with pytest.raises(UnreadableError, match=why):
        cells_of(name, content)


def test_a_python_file_is_one_cell():
    assert cells_of("my_rlhf.py", b"\xef\xbb\xbfx = 1\r\n") == [Cell("my_rlhf.py", "x = 1\n", True)]


def code(source):
    return [ast.unparse(node) for node in statements(Cell("c", source, True))]


def test_magics_are_read_as_ipython_reads_them():
    assert code("%matplotlib inline\nx = 1")[-1] == "x = 1"
    assert code("if x:\n    !pip install y\nz = 2")[-1] == "z = 2"
    assert code("%%time\nx = 1") == ["x = 1"]
    assert code("%%bash\nrm -rf /") == []
    assert "help" not in "".join(code("x?\ny = 1")[-1])
    assert code("") == []


@pytest.mark.parametrize(
    "source", ["def f(:", "x = (", "  x = 1\n y = 2", "x = '\0'", "(" * 300 + ")" * 300, "x = 1" * 200_000, "-" * 50_000 + "1"]
)
def test_what_is_no_python_is_a_syntax_error(source):
    with pytest.raises(SyntaxError):
        statements(Cell("c", source, True))
