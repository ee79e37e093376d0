"""Options from run.yaml: checked, overridden by the command line, warned of changes."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnx")

from training import train
from training.errors import InvalidConfig
from training.runs import config

pytestmark = pytest.mark.train


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "recipe: mlp\nset: {epochs: 3, hidden: [8, 4], lr: 0.01}\nseeds: 2\n"
        "data: {train: rows}\nmodel-dir: there\nbudget: 1\n"
    )

    options = train.parse(["--config", str(path), "--set", "epochs=5", "--seeds", "1"])

    assert (options.recipe, options.seeds, options.budget) == ("mlp", 1, 1.0)
    assert options.set == ["epochs=3", "hidden=[8, 4]", "lr=0.01", "epochs=5"]
    assert options.data == ["train=rows"]
    assert options.model_dir == Path("there")
    assert train.parse(["digits", "--config", str(path)]).recipe == "digits"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipie: mlp", "has no option 'recipie': did you mean 'recipe'?"),
        ("seeds: many", "seeds is 'many', not a whole number"),
        ("max_runtime: 0", "max_runtime is 0.0, not a number above 0"),
        ("max_runtime: .nan", "max_runtime is nan, not a number above 0"),
        ("max_runtime: .inf", "max_runtime is inf, not a number above 0"),
        ("seeds: true", "seeds is True, not a whole number"),
        ("set: [1]", r"set is \[1\], not a mapping"),
        ("- mlp", "is no mapping of options"),
        ("a: [", "is no YAML"),
        ("x: !!python/object/apply:os.system [ls]", "is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)

    with pytest.raises(InvalidConfig, match=reason):
        config.read(path)


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "nowhere.yaml"], {}) == 1
    assert capsys.readouterr().err == "error: --config nowhere.yaml: No such file or directory\n"


def test_what_is_written_is_read_back_and_empty_options_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    options = {"recipe": "mlp", "set": {"hidden": (8, 4), "lr": 1e-05}, "seeds": 1, "compress": ""}

    config.write(path, options, {"code": "a"})

    assert config.read(path) == {
        "recipe": "mlp",
        "set": ["hidden=[8, 4]", "lr=1e-05"],
        "seeds": 1,
        "expected": {"code": "a"},
    }
