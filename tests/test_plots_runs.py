import pytest

from rlhf_lib.__main__ import main
from rlhf_lib.files import RunError, write_json
from rlhf_lib.plots_runs import curves, find_runs
from rlhf_lib.runs import Metrics


def made(folder, values, stage="pretrain"):
    write_json(folder / "settings.json", {"seed": 0})
    for step, value in enumerate(values):
        Metrics(folder).log(stage, step, val_perplexity=value)
        Metrics(folder).log("policy", step, reward=value / 10)
    return folder


def lines(ax):
    return [(line.get_label(), *map(list, line.get_data())) for line in ax.lines]


def test_runs_are_found_at_any_depth_and_named_as_far_as_they_differ(tmp_path):
    made(tmp_path / "ada" / "runs" / "laptop", [3.0])
    made(tmp_path / "bo" / "runs" / "laptop", [4.0])
    Metrics(tmp_path / "bo" / "runs" / "laptop" / "gold").log("reward", 0, loss=1.0)  # a judge's own figures are no run
    assert [*find_runs([tmp_path])] == ["ada/runs/laptop", "bo/runs/laptop"]
    assert [*find_runs([tmp_path / "bo"])] == ["laptop"]
    assert len(find_runs([tmp_path, tmp_path / "bo"])) == 2  # named twice, found once


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_run_is_named(tmp_path, there, capsys):
    folder = tmp_path / "empty"
    folder.mkdir() if there else None
    with pytest.raises(RunError, match=f"{folder} holds no run"):
        find_runs([folder])
    assert main(["figures", str(folder), "--out", str(tmp_path / "x.png")]) == 1
    assert "holds no run" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_few_runs_are_told_apart_by_name(tmp_path, stage):
    made(tmp_path / "a", [9.0, 5.0], stage), made(tmp_path / "b", [8.0, 4.0], stage)
    perplexity, reward = curves(find_runs([tmp_path])).axes
    assert lines(perplexity) == [("a", [0, 1], [9.0, 5.0]), ("b", [0, 1], [8.0, 4.0])]
    assert [line[2] for line in lines(reward)] == [[0.9, 0.5], [0.8, 0.4]]
    assert len({line.get_color() for line in perplexity.lines}) == 2


def test_a_class_is_grey_with_the_median_of_those_that_came_as_far(tmp_path):
    for number, values in enumerate([[1.0, 2.0], [2.0, 4.0], [3.0], [4.0, 9.0], [10.0]]):
        made(tmp_path / str(number), values)
    write_json(tmp_path / "5" / "settings.json", {})
    Metrics(tmp_path / "5").log("policy", 0, reward=7.0)  # has no perplexity
    perplexity, reward = curves(find_runs([tmp_path])).axes
    assert lines(perplexity)[-1] == ("median of 5 runs", [0, 1], [3.0, 4.0])
    assert lines(reward)[-1][0] == "median of 6 runs" and lines(reward)[-1][2][0] == pytest.approx(0.35)
    assert len({line.get_color() for line in perplexity.lines[:-1]}) == 1


def test_the_command_writes_a_picture_and_refuses_other_kinds(tmp_path, capsys):
    made(tmp_path / "run", [2.0, 1.0])
    assert main(["figures", str(tmp_path / "run"), "--out", str(tmp_path / "new" / "curves.png")]) == 0
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    assert main(["figures", str(tmp_path / "run"), "--out", str(tmp_path / "file" / "curves.svg")]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'file' / 'curves.svg'}")
    assert main(["figures", str(tmp_path / "run"), "--out", str(tmp_path / "curves.txt")]) == 1
    assert "--out must end in .png, .svg or .pdf" in capsys.readouterr().err
