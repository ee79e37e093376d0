"""`make train-all` with two recipes: real jobs on the local stack, results, and errors."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("torch", reason="training needs torch")

from local import demo, train_all
from training.recipe_loading import built_in

pytestmark = pytest.mark.train


@pytest.mark.slow
def test_recipes_are_trained_and_called_and_a_failure_is_reported(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_all, "STATE", tmp_path)

    assert train_all.main(["linear", "mlp", "--set", "mlp.layers=2", "--compress", "mlp="]) == 1

    output = capsys.readouterr().out
    [row] = [line for line in output.splitlines() if line.startswith("linear ")]
    assert row.split()[1] == "rmse"
    assert 50 < float(row.split()[2]) < 65
    assert row.split()[3:5] == ["mean", "80.7001"]
    assert "FAILED mlp: the job was not accepted: unknown hyperparameter 'layers'" in output
    assert output.splitlines()[-1].startswith("1 of 2 recipes")


def sample(*values: object, datatype: str = "FP32") -> dict[str, object]:
    output = {"name": "y", "datatype": datatype, "shape": [1, len(values)], "data": list(values)}
    return {"request": {"inputs": []}, "response": {"outputs": [output]}}


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (sample(1.0, 2.0), None),
        (sample(1.0, 2.00001), None),
        (sample(1.0, 2.1), "output y differs from training"),
        (sample(1.0), "output y: shape"),
        (sample(1, 2, datatype="INT64"), "output y: datatype"),
    ],
)
def test_an_answer_is_compared_with_the_sample_of_training(
    expected: dict[str, object], error: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_all, "fetch", lambda url, body: sample(1.0, 2.0)["response"])

    if error is None:
        train_all._check("http://-", expected, {"rtol": 1e-3, "atol": 1e-5})
        return
    with pytest.raises(demo.DemoFailed, match=error):
        train_all._check("http://-", expected, {"rtol": 1e-3, "atol": 1e-5})


class Refusal(BaseHTTPRequestHandler):
    """Answers every POST with 400 and a reason."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"error": "no input image"}'
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_refused_sample_is_a_failure_with_its_reason() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(
            demo.DemoFailed, match='the endpoint answered 400: {"error": "no input image"}'
        ):
            train_all._check(
                f"http://127.0.0.1:{server.server_port}/", sample(1.0), {"rtol": 0, "atol": 0}
            )
        thread.join()


def test_unknown_recipes_and_malformed_options_are_refused_before_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train_all.main(["digit"])
    assert "there is no recipe 'digit'; there are churn, " in capsys.readouterr().err
    assert train_all.main(["linear", "--set", "epochs=1"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --set epochs=1: write RECIPE.NAME=VALUE, with one of churn, "
    )


def test_compressed_recipes_exist() -> None:
    assert set(train_all.COMPRESS) <= set(built_in())
