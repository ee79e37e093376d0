"""`make train-all` in small: real jobs on the local stack, to the table; and every way in which it says no."""

import pytest

pytest.importorskip("torch", reason="training needs torch")

from local import demo, train_all
from training.recipe_loading import built_in

pytestmark = pytest.mark.train


@pytest.mark.slow
def test_recipes_are_trained_registered_and_asked_and_a_failure_is_told(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_all, "STATE", tmp_path)

    assert train_all.main(["linear", "mlp", "--set", "mlp.layers=2", "--compress", "mlp="]) == 1

    said = capsys.readouterr().out
    [row] = [line for line in said.splitlines() if line.startswith("linear ")]
    assert row.split()[1] == "rmse"
    assert 50 < float(row.split()[2]) < 65
    assert row.split()[3:5] == ["mean", "80.7001"]
    assert "FAILED mlp: the job was not accepted: error: unknown hyperparameter 'layers'" in said
    assert said.splitlines()[-1].startswith("1 of 2 recipes")


def sample(*values: object, datatype: str = "FP32") -> dict[str, object]:
    output = {"name": "y", "datatype": datatype, "shape": [1, len(values)], "data": list(values)}
    return {"request": {"inputs": []}, "response": {"outputs": [output]}}


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        (sample(1.0, 2.0), None),
        (sample(1.0, 2.00001), None),
        (sample(1.0, 2.1), "output y is not what it was in training"),
        (sample(1.0), "output y: shape"),
        (sample(1, 2, datatype="INT64"), "output y: datatype"),
    ],
)
def test_an_answer_is_compared_with_the_one_in_training(
    expected: dict[str, object], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_all, "get", lambda url, body: sample(1.0, 2.0)["response"])

    if why is None:
        train_all._check("http://-", expected, {"rtol": 1e-3, "atol": 1e-5})
        return
    with pytest.raises(demo.DemoFailed, match=why):
        train_all._check("http://-", expected, {"rtol": 1e-3, "atol": 1e-5})


def test_a_refused_sample_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_all, "get", lambda url, body: None)

    with pytest.raises(demo.DemoFailed, match="refused a sample"):
        train_all._check("http://-", sample(1.0), {"rtol": 0, "atol": 0})


def test_what_cannot_be_meant_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train_all.main(["digit"])
    assert "there is no recipe 'digit'; there are churn, " in capsys.readouterr().err
    assert train_all.main(["linear", "--set", "epochs=1"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --set epochs=1: write RECIPE.NAME=VALUE, with one of churn, "
    )


def test_what_is_compressed_is_there() -> None:
    assert set(train_all.COMPRESS) <= set(built_in())
