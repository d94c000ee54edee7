import io
import os
import zipfile

import pytest

from rlhf_lib.files import RunError
from rlhf_lib.grading import submissions
from rlhf_lib.grading.submissions import UnreadableError, find


def folder(tmp_path, *names):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def zipped(entries):
    """The bytes of a zip with these entries: {name: content}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def at(path, content):
    path.write_bytes(content)
    return path


def files(found):
    return {one.student: sorted(file.name for file in one.files) for one in found[0]}


def test_by_folder_or_by_name(tmp_path):
    found = find(
        folder(
            tmp_path,
            "anna/07_policy_gradients_and_ppo.ipynb",
            "anna/sub/my_rlhf.py",
            "ben_07_policy_gradients_and_ppo.ipynb",
            "07_policy_gradients_and_ppo_cleo (1).ipynb",
            "dora.ipynb",
            "my_rlhf_emil.py",
            "08_rlhf.ipynb",
        )
    )
    assert files(found) == {
        "anna": ["07_policy_gradients_and_ppo.ipynb", "my_rlhf.py"],
        "ben": ["ben_07_policy_gradients_and_ppo.ipynb"],
        "cleo": ["07_policy_gradients_and_ppo_cleo (1).ipynb"],
        "dora": ["dora.ipynb"],
        "emil": ["my_rlhf_emil.py"],
    }
    assert len(found[1]) == 1 and found[1][0].startswith("08_rlhf.ipynb: whose it is cannot be seen")
    assert next(one for one in found[0] if one.student == "anna").files[0].read() == b"anna/07_policy_gradients_and_ppo.ipynb"


def test_as_canvas_exports_it(tmp_path):
    content = zipped(
        {
            "leeanna_1001_55_07_policy_gradients_and_ppo.ipynb": "a",
            "leeanna_1001_56_07_policy_gradients_and_ppo-1.ipynb": "b",
            "roeben_LATE_1002_57_my_rlhf.py": "c",
            "leeanna_1003_58_08_rlhf.ipynb": "d",
        }
    )
    found, lost = find(at(tmp_path / "submissions.zip", content))
    assert lost == []
    assert [(one.student, one.id, one.late, len(one.files)) for one in found] == [
        ("leeanna", "1001", False, 2),
        ("leeanna", "1003", False, 1),
        ("roeben", "1002", True, 1),
    ]
    newest = max(found[0].files, key=lambda file: file.rank)
    assert newest.read() == b"b"


def test_as_moodle_exports_it(tmp_path):
    content = zipped(
        {
            "Anna Lee_881_assignsubmission_file_/07.ipynb": "a",
            "Ömer Ünlü_882_assignsubmission_file_/my work.ipynb": "b",
            "Anna Lee_883_assignsubmission_file_07.ipynb": "c",
        }
    )
    found, _ = find(at(tmp_path / "moodle.zip", content))
    assert [(one.student, one.id) for one in found] == [("Anna Lee", "881"), ("Anna Lee", "883"), ("Ömer Ünlü", "882")]


def test_as_gradescope_exports_it(tmp_path):
    names = (
        "submission_1:\n"
        "  :submitters:\n"
        "  - :name: Anna Lee\n"
        "    :sid: '77'\n"
        "    :email: a@x.org\n"
        "submission_2:\n"
        "  :submitters: []\n"
    )
    content = zipped(
        {
            "assignment_9_export/submission_1/07.ipynb": "a",
            "assignment_9_export/submission_2/07.ipynb": "b",
            "assignment_9_export/submission_metadata.yml": names,
        }
    )
    found, _ = find(at(tmp_path / "x.zip", content))
    assert [(one.student, one.id, one.email) for one in found] == [("Anna Lee", "77", "a@x.org"), ("submission_2", "2", "")]


def test_a_table_of_names_that_makes_objects_is_refused(tmp_path):
    path = tmp_path / "assignment_9_export"
    folder(path, "submission_1/07.ipynb")
    (path / "submission_metadata.yml").write_text("submission_1: !!python/object/apply:os.system ['touch made']")
    with pytest.raises(RunError, match=r"submission_metadata\.yml is not Gradescope's"):
        find(tmp_path)


def test_the_folder_round_a_zip_is_no_student(tmp_path):
    assert files(find(at(tmp_path / "class.zip", zipped({"class/anna/a.ipynb": "", "class/ben/a.ipynb": ""})))).keys() == {
        "anna",
        "ben",
    }
    assert files(find(folder(tmp_path / "one", "anna/a.ipynb"))).keys() == {"anna"}


def test_a_zip_inside_is_looked_into_once(tmp_path):
    inner = zipped({"work/07.ipynb": "deep", "again.zip": zipped({"x.ipynb": "deeper"})})
    found, _ = find(at(tmp_path / "all.zip", zipped({"anna/work.zip": inner, "ben/b.ipynb": "b", "cleo/broken.zip": b"PK no"})))
    anna, _, cleo = found
    assert {file.name: file.read()[:4] for file in anna.files} == {"07.ipynb": b"deep", "again.zip": b"PK\x03\x04"}
    assert cleo.files == [] and "no zip that can be read" in cleo.skipped[0]


def of_a_later_version(content):
    """The zip with its first entry as of version 25.5, which no zipfile reads."""
    place = content.index(b"PK\x01\x02")
    return content[: place + 6] + b"\xff" + content[place + 7 :]


def test_a_zip_of_a_later_version_is_said_to_be_one_that_cannot_be_read(tmp_path):
    newer = of_a_later_version(zipped({"07.ipynb": "x"}))
    with pytest.raises(
        RunError, match=r"all\.zip cannot be read \(zip file version 25\.5\): give a folder or a zip of submissions"
    ):
        find(at(tmp_path / "all.zip", newer))
    found, _ = find(at(tmp_path / "some.zip", zipped({"anna/a.ipynb": "a", "ben/new.zip": newer})))
    assert [file.name for file in found[0].files] == ["a.ipynb"]
    assert found[1].files == [] and "no zip that can be read (zip file version 25.5)" in found[1].skipped[0]


def test_an_entry_without_a_name_is_left_out_and_counted(tmp_path):
    entries = {"class/anna/a.ipynb": "a", "class/ben/b.ipynb": "b"}
    content = zipped({**entries, "x": "c"}).replace(b"x", b"\0")  # a name ends at the first zero byte
    found, lost = find(at(tmp_path / "class.zip", content))
    assert files((found, lost)) == {"anna": ["a.ipynb"], "ben": ["b.ipynb"]}
    assert lost == ["class.zip: one of its files has no name in the zip"]
    inner = zipped({"b.ipynb": "b", "x": "c"}).replace(b"x", b"\0")
    (ben,), _ = find(at(tmp_path / "all.zip", zipped({"ben/work.zip": inner})))
    assert [file.name for file in ben.files] == ["b.ipynb"] and "it has no name in the zip" in ben.skipped[0]


def test_names_that_lead_out_of_a_zip_are_left_out(tmp_path):
    content = zipped(
        {"anna/../../../etc/evil.ipynb": "x", "/root/evil.ipynb": "x", "C:\\evil.ipynb": "x", "anna/good.ipynb": "x"}
    )
    before = {path for path in tmp_path.rglob("*")}
    found, _ = find(at(tmp_path / "z.zip", content))
    assert [file.name for one in found for file in one.files] == ["good.ipynb"]
    assert any("leads out of the zip" in reason for one in found for reason in one.skipped)
    assert {path for path in tmp_path.rglob("*")} - before == {tmp_path / "z.zip"}


def test_links_are_not_followed(tmp_path):
    secret = at(tmp_path / "secret.ipynb", b"secret")
    root = folder(tmp_path / "in", "anna/a.ipynb")
    os.symlink(secret, root / "anna" / "b.ipynb")
    os.symlink(tmp_path, root / "anna" / "c")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("ben/b.ipynb")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, str(secret))
    found, _ = find(root)
    assert [file.name for file in found[0].files] == ["a.ipynb"]
    assert sorted(reason.split(":")[0] for reason in found[0].skipped) == ["b.ipynb", "c"]
    found, _ = find(at(tmp_path / "z.zip", out.getvalue()))
    assert found[0].files == [] and "link" in found[0].skipped[0]


def test_a_file_that_became_a_link_or_a_pipe_since_is_not_read(tmp_path):
    root = folder(tmp_path / "in", "anna/a.ipynb", "anna/p.ipynb")
    one, two = find(root)[0][0].files
    for path in (root / "anna" / "a.ipynb", root / "anna" / "p.ipynb"):
        path.unlink()
    os.symlink("/etc/passwd", root / "anna" / "a.ipynb")
    os.mkfifo(root / "anna" / "p.ipynb")
    with pytest.raises(UnreadableError):
        one.read()
    assert two.read() == b""


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "BOMB", 10_000)
    content = zipped(
        {"anna/a.ipynb": b"\0" * 3_000_000, "anna/b.ipynb": "fine", "ben/b.zip": zipped({"x.ipynb": b"\0" * 3_000_000})}
    )
    found, _ = find(at(tmp_path / "z.zip", content))
    bomb, fine = sorted(found[0].files, key=lambda file: file.name)
    assert fine.read() == b"fine"
    with pytest.raises(UnreadableError, match="zip bomb"):
        bomb.read()
    with pytest.raises(UnreadableError, match="zip bomb"):
        found[1].files[0].read()


def test_a_file_may_be_too_large_and_a_student_may_hand_in_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGE", 10)
    monkeypatch.setattr(submissions, "MANY", 3)
    found, _ = find(folder(tmp_path, "a/long-name.py", *(f"b/{n}.py" for n in range(9))))
    with pytest.raises(UnreadableError, match="larger than"):
        found[0].files[0].read()
    assert len(found[1].files) == 3 and found[1].skipped == ["only the first 3 files, and 1024 MB, are looked at"]


def test_a_student_s_files_are_so_large_together(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "ALL", 25)
    (one, other), _ = find(folder(tmp_path, "a/12345678.py", "a/22345678.py", "b/12345678.py"))
    assert [file.name for file in one.files] == ["12345678.py"] and "are looked at" in one.skipped[0]
    assert len(other.files) == 1 and other.skipped == []


def test_a_zip_with_too_many_files_costs_its_student_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "STUFFED", 50)
    monkeypatch.setattr(submissions, "ENTRIES", 60)
    many = zipped({f"{number}.py": "" for number in range(100)})
    for path in (tmp_path / "in" / "anna" / "work.zip", tmp_path / "in" / "ben" / "b.ipynb"):
        path.parent.mkdir(parents=True)
        path.write_bytes(many)
    (anna, ben), _ = find(tmp_path / "in")
    assert anna.files == [] and anna.skipped == ["work.zip: it has more than 50 files in it"] and len(ben.files) == 1
    found, _ = find(at(tmp_path / "class.zip", zipped({"anna/work.zip": many, "ben/b.ipynb": ""})))
    assert found[0].skipped == anna.skipped and len(found[1].files) == 1


def test_a_learners_folder_may_be_handed_in_whole(tmp_path):
    work = ("my_course/07_policy_gradients_and_ppo.ipynb", "my_course/my_rlhf.py", "my_course/progress.json")
    beside = ("findings.json", "figures/7.A.png", "labels.jsonl", "runs/laptop/model.safetensors", "rlhf_lib/ppo.py")
    found, _ = find(
        folder(tmp_path, *(f"anna/{one}" for one in work), *(f"anna/my_course/{one}" for one in beside), "ben/a.docx")
    )
    assert files((found, [])) == {"anna": sorted(one.partition("/")[2] for one in work), "ben": ["a.docx"]}
    assert found[0].skipped == []
    assert files(find(folder(tmp_path / "2", "cleo/progress.json", "dora/x.py"))) == {"cleo": ["progress.json"], "dora": ["x.py"]}


def test_damaged_zips_name_themselves(tmp_path):
    whole = zipped({"anna/a.ipynb": os.urandom(5000)})
    damaged = bytearray(whole)
    damaged[200:400] = b"\0" * 200
    found, _ = find(at(tmp_path / "z.zip", bytes(damaged)))
    with pytest.raises(UnreadableError, match=r"cannot be read|damaged"):
        found[0].files[0].read()
    with pytest.raises(RunError, match="give a folder or a zip"):
        find(at(tmp_path / "half.zip", whole[:300]))
    with pytest.raises(RunError, match="no submissions at"):
        find(tmp_path / "nothing")


def test_names_are_brought_into_one_form(tmp_path):
    found, _ = find(at(tmp_path / "z.zip", zipped({"Zoe\u0308/a.ipynb": "1", "Zo\u00eb/b.ipynb": "2", "ev\x1bil/c.ipynb": "3"})))
    assert files((found, [])) == {"Zoë": ["a.ipynb", "b.ipynb"], "ev�il": ["c.ipynb"]}


def test_what_systems_leave_in_folders_is_not_looked_at(tmp_path):
    names = ("anna/a.ipynb", "anna/.ipynb_checkpoints/a-checkpoint.ipynb", "__MACOSX/anna/._a.ipynb", "anna/.DS_Store")
    assert files(find(folder(tmp_path, *names))) == {"anna": ["a.ipynb"]}


@pytest.mark.parametrize(
    "older, newer",
    [
        ("07.ipynb", "07 (1).ipynb"),
        ("07 (2).ipynb", "07 (10).ipynb"),
        ("07.ipynb", "07-Copy1.ipynb"),
        ("07-1.ipynb", "07-2.ipynb"),
    ],
)
def test_which_of_two_versions_is_newer(older, newer):
    assert submissions.rank(older, 100.0) < submissions.rank(newer, 100.0)
    assert submissions.rank("07.ipynb", 50.0) < submissions.rank("07.ipynb", 100.0)
