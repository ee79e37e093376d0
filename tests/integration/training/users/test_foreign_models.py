"""Publish models of other frameworks: TensorFlow SavedModels, Keras files, and refusals.

    make .venv-tensorflow/.done .venv-keras/.done

Without these environments, the tests that convert are skipped.
"""

import json
import pickle
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from functions.adapters.sandbox import ProcessSandbox
from functions.core.registry.version import State
from tests.platform import Platform
from tests.stress.binary_requests import infer
from training.errors import InvalidArtifact
from training.export.graphs import open_session
from training.publish import main
from training.publishing import keras_file
from training.publishing.conversion import Conversion, prove

TENSORFLOW, KERAS = Path(".venv-tensorflow/bin/python"), Path(".venv-keras/bin/python")
pytestmark = pytest.mark.train
# Writes SavedModels and Keras files, and answers of theirs.
SAVED = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras
import numpy as np
import tensorflow as tf
from keras import layers

keras.utils.set_random_seed(0)
digits = keras.Sequential([
    keras.Input((12, 12, 1), name="image"), layers.Conv2D(4, 3, activation="relu"),
    layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten(),
    layers.Dense(3, activation="softmax"),
])
digits.export("digits", verbose=False)
text = keras.Sequential([
    keras.Input((None,), dtype="int32", name="tokens"), layers.Embedding(20, 8), layers.LSTM(4),
    layers.Dense(2, activation="softmax"),
])
text.export("text", verbose=False)


class Pair(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(tf.random.normal((4, 3), seed=1))

    @tf.function(input_signature=[tf.TensorSpec((2, 4), tf.float32, "x"),
                                  tf.TensorSpec((2, 3), tf.float32, "shift")])
    def fixed(self, x, shift):
        return {"total": x @ self.weight + shift, "mean": tf.reduce_mean(x, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec((2, 4), tf.float32, "x")])
    def mixed(self, x):
        return {"centered": x - tf.reduce_mean(x, axis=0)}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
    def unsupported(self, x):
        return {"numbers": tf.linalg.svd(x)[0]}


pair = Pair()
signatures = {"fixed": pair.fixed, "mixed": pair.mixed, "unsupported": pair.unsupported}
tf.saved_model.save(pair, "pair", signatures=signatures)
tf.saved_model.save(pair, "nothing")
random = np.random.default_rng(0)
image = random.random((5, 12, 12, 1)).astype("float32")
x, shift = random.random((4, 4)).astype("float32"), random.random((4, 3)).astype("float32")
tokens = random.integers(0, 20, (3, 7)).astype("int32")
fixed = [pair.fixed(tf.constant(x[at:at + 2]), tf.constant(shift[at:at + 2])) for at in (0, 2)]
np.savez("digits.npz", **{"in:image": image, "out:output_0": digits.predict(image, verbose=0)})
np.savez("text.npz", **{"in:tokens": tokens, "out:output_0": text.predict(tokens, verbose=0)})
np.savez("fixed.npz", **{
    "in:x": x, "in:shift": shift,
    **{f"out:{name}": np.concatenate([part[name] for part in fixed]) for name in fixed[0]},
})
np.savez("rows.npz", image=np.concatenate([image] * 8))
"""
FILES = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(0)
first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
hidden = layers.Concatenate()([layers.Dense(4)(first), layers.Dense(4)(second)])
model = keras.Model([first, second], [layers.Dense(1, name="sum")(hidden),
                                      layers.Dense(2, name="other", activation="tanh")(hidden)])
model.save("two.keras")
photos = keras.Sequential([
    keras.Input((None, None, 3), name="photo"), layers.Conv2D(4, 3, activation="relu"),
    layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax", name="kind"),
])
photos.save("photos.h5")
photos.save_weights("photos.weights.h5")
lambdas = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: 2 * x, name="twice")])
lambdas.save("lambda.keras")
lambdas.save("lambda.h5")
recurrent = keras.Sequential([keras.Input((None, 2)), layers.Bidirectional(layers.LSTM(4))])
recurrent.save("recurrent.keras")


class Own(layers.Layer):
    def call(self, x):
        return x + 1


keras.Sequential([keras.Input((3,)), Own()]).save("own.keras")
random = np.random.default_rng(0)
a, b = random.random((5, 3)).astype("float32"), random.random((5, 2)).astype("float32")
total, other = model.predict([a, b], verbose=0)
np.savez("two.npz", **{"in:first": a, "in:second": b, "out:sum": total, "out:other": other})
photo = random.random((2, 40, 50, 3)).astype("float32")
np.savez("photos.npz", **{"in:photo": photo, "out:kind": photos.predict(photo, verbose=0)})
"""
# Publishes each command's file in one process, since TensorFlow takes seconds to import.
PUBLISH = """
import contextlib, io, json, sys
from training.publish import main

found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    said, refused = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(refused):
        status = main([*arguments, "--model", "demo", "--output", f"out/{name}.onnx"], {})
    found[name] = [status, said.getvalue(), refused.getvalue()]
print(json.dumps(found))
"""
CLASSIFIES, EMBEDS = ["--task", "classification"], ["--task", "embedding"]
SAVED_COMMANDS = {
    "digits": ["digits", *CLASSIFIES, "--data", "rows.npz"],
    "text": ["text", *CLASSIFIES],
    "fixed": ["pair", *EMBEDS, "--signature", "fixed"],
    "mixed": ["pair/saved_model.pb", *EMBEDS, "--signature", "mixed"],
    "several": ["pair", *EMBEDS],
    "unknown": ["pair", *EMBEDS, "--signature", "other"],
    "unsupported": ["pair", *EMBEDS, "--signature", "unsupported"],
    "nothing": ["nothing", *EMBEDS],
    "broken": ["broken", *EMBEDS],
}
FILE_COMMANDS = {
    "two": ["two.keras", *EMBEDS],
    "photos": ["photos.h5", *CLASSIFIES],
    "weights": ["photos.weights.h5", *EMBEDS],
    "lambda": ["lambda.keras", *EMBEDS],
    "lambda-h5": ["lambda.h5", *EMBEDS],
    "recurrent": ["recurrent.keras", *EMBEDS],
    "own": ["own.keras", *EMBEDS],
    "torn": ["torn.keras", *EMBEDS],
}
Found = dict[str, tuple[int, str, str]]


def run(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [python.absolute(), "-W", "ignore", *arguments],
        capture_output=True, text=True, timeout=1800, check=False, cwd=folder,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
             "HOME": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """Publish SavedModels; return the folder, and status and output of each command."""
    folder = tmp_path_factory.mktemp("saved")
    run(TENSORFLOW, folder, "-c", SAVED)
    (folder / "broken").mkdir()
    (folder / "broken" / "saved_model.pb").write_bytes(b"no model")
    printed = run(TENSORFLOW, folder, "-c", PUBLISH, json.dumps(SAVED_COMMANDS))
    return folder, json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """Publish Keras files; return the folder, and status and output of each command."""
    folder = tmp_path_factory.mktemp("files")
    run(KERAS, folder, "-c", FILES)
    (folder / "torn.keras").write_bytes(b"no archive")
    printed = run(KERAS, folder, "-c", PUBLISH, json.dumps(FILE_COMMANDS))
    return folder, json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    sandbox = ProcessSandbox()
    yield sandbox
    sandbox.close()


def check_served(folder: Path, name: str, sandbox: ProcessSandbox, directory: Path) -> None:
    """Register a published file; compare its answers with the framework's own."""
    arrays = np.load(folder / f"{name}.npz")
    inputs, expected = (
        {key[len(kind) :]: arrays[key] for key in arrays.files if key.startswith(kind)}
        for kind in ("in:", "out:")
    )
    platform = Platform(directory, sandbox)
    version = platform.upload((folder / "out" / f"{name}.onnx").read_bytes())
    assert version.state is State.READY, version.reason
    for rows in (slice(0, 1), slice(None)):
        outputs = infer(platform, version, {key: inputs[key][rows] for key in inputs})
        assert set(outputs) == set(expected)
        for key, values in outputs.items():
            np.testing.assert_allclose(values, expected[key][rows], 1e-5, 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not TENSORFLOW.exists(), reason="needs tensorflow and tf2onnx: make .venv-tensorflow/.done"
)
class TestSavedModels:
    @pytest.mark.parametrize("name", ["digits", "text", "fixed"])
    def test_one_is_served_as_tensorflow_answers(
        self, saved: tuple[Path, Found], sandbox: ProcessSandbox, tmp_path: Path, name: str
    ) -> None:
        folder, found = saved
        status, said, refused = found[name]
        assert status == 0, refused

        check_served(folder, name, sandbox, tmp_path)

        assert "requests as the original does" in said

    def test_a_batch_that_mixes_rows_stays_fixed(self, saved: tuple[Path, Found]) -> None:
        found = saved[1]

        assert "its batch of 2 is made free: the graph computes each row alone" in found["fixed"][1]
        assert (
            "its batch stays 2: the graph is not proven to compute each row alone"
            in (found["mixed"][1])
        )
        assert "x FP32[2, 4]" in found["mixed"][1]

    def test_rows_of_data_are_compared_and_described(self, saved: tuple[Path, Found]) -> None:
        import onnx

        said = saved[1]["digits"][1]
        model = onnx.load(saved[0] / "out" / "digits.onnx")
        (card,) = [json.loads(prop.value) for prop in model.metadata_props
                   if prop.key == "mayfly.manifest"]  # fmt: skip

        assert "the graph answers 5 requests as the original does" in said
        assert card["distributions"]["inputs"]

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("several", "pair has several signatures: fixed, mixed, unsupported; choose one by"),
            ("unknown", "pair has no signature 'other': fixed, mixed, unsupported; choose one by"),
            ("unsupported", "tf2onnx does not convert pair: "),
            ("nothing", "nothing has no signature: save it with tf.saved_model.save("),
            ("broken", "TensorFlow does not load broken: "),
        ],
    )
    def test_what_cannot_be_converted_is_said(
        self, saved: tuple[Path, Found], name: str, sentence: str
    ) -> None:
        status, _, refused = saved[1][name]

        assert status == 1
        assert f"error: {sentence}" in refused
        assert "Traceback" not in refused


@pytest.mark.slow
@pytest.mark.skipif(not KERAS.exists(), reason="needs Keras: make .venv-keras/.done")
class TestKerasFiles:
    @pytest.mark.parametrize("name", ["two", "photos"])
    def test_one_is_served_as_keras_answers(
        self, files: tuple[Path, Found], sandbox: ProcessSandbox, tmp_path: Path, name: str
    ) -> None:
        folder, found = files
        status, said, refused = found[name]
        assert status == 0, refused

        check_served(folder, name, sandbox, tmp_path)

        assert "requests as the original does" in said

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("weights", "photos.weights.h5 holds weights without a network: load them into the"),
            ("lambda", "lambda.keras: its Lambda layer 'twice' is Python code, which is not run"),
            ("lambda-h5", "lambda.h5: its Lambda layer 'twice' is Python code, which is not run"),
            ("recurrent", "recurrent.keras: Keras's torch backend exports the LSTM '"),
            ("own", "Keras does not load own.keras (Could not locate class 'Own'."),
            ("torn", "torn.keras is no file that Keras saved"),
        ],
    )
    def test_what_cannot_be_converted_is_said(
        self, files: tuple[Path, Found], name: str, sentence: str
    ) -> None:
        status, _, refused = files[1][name]

        assert status == 1
        assert f"error: {sentence}" in refused
        assert "Traceback" not in refused


class Trap:
    """Object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("harm", ["cut deflate", "encrypted", "nested"])
def test_a_damaged_keras_file_is_refused_in_one_sentence(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "m.keras"
    text = "[" * 100_000 if harm == "nested" else json.dumps({"layers": list(range(100))})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", text)
    raw = bytearray(path.read_bytes())
    if harm == "cut deflate":
        raw[45:60] = b"\xff" * 15
    elif harm == "encrypted":
        raw[6] |= 1
        raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)

    with pytest.raises(InvalidArtifact, match=r"^m.keras is no file that Keras saved$"):
        keras_file._config(path)


def test_a_graph_that_refuses_what_the_original_answers_is_refused() -> None:
    rows = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["batch"])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["batch"])
    table = onnx.numpy_helper.from_array(np.ones(3, np.float32), "table")
    gather = onnx.helper.make_node("Gather", ["table", "rows"], ["out"])
    graph = onnx.helper.make_graph([gather], "g", [rows], [out], [table])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )

    def original(request: Any) -> Any:
        return {"out": np.where(request["rows"] < 3, np.float32(1), np.float32(0))}

    with pytest.raises(InvalidArtifact, match="refuses a request of 2 rows that the original"):
        prove(Conversion(model, original), open_session(model), [{"rows": np.array([1, 9])}])


@pytest.mark.parametrize(
    "name", ["m.pkl", "M.Pickle", "m.joblib", "m.dill", "m.pt", "m.pth", "m.bin"]
)
def test_a_pickle_is_refused_unopened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))

    assert main([str(tmp_path / name), "--model", "demo", "--task", "regression"], {}) == 1

    assert "is not opened, because opening it" in capsys.readouterr().err
    assert not (tmp_path / "opened").exists()


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"")


@pytest.mark.parametrize(
    ("name", "members", "sentence"),
    [
        ("m.pt", ["m/constants.pkl", "m/code/m.py", "m/data.pkl"], "is a TorchScript program"),
        ("m.pt2", ["m/archive_format", "m/models/model.json"], "is a program of torch.export"),
        (
            "m.pth",
            ["m/data.pkl", "m/data/0"],
            "load the weights with torch.load(FILE, weights_only",
        ),
        ("m.safetensors", [], "holds weights without a network"),
        ("m.gguf", [], "python -m training import-gguf FILE"),
        ("m.tflite", [], "python -m tf2onnx.convert --tflite FILE"),
        ("frozen.pb", [], "python -m tf2onnx.convert --graphdef FILE"),
        ("model.tar.gz", [], "is a package, and publish describes one file"),
        ("m.skops", [], "convert it with skl2onnx.to_onnx("),
    ],
)
def test_other_formats_are_refused_with_the_way_to_onnx(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    members: list[str],
    sentence: str,
) -> None:
    archive(tmp_path / name, *members)

    assert main([str(tmp_path / name), "--model", "demo", "--task", "regression"], {}) == 1

    assert f"error: {name} " in (error := capsys.readouterr().err)
    assert sentence in error


def test_without_the_packages_it_is_said_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").touch()
    archive(tmp_path / "m.keras")

    for name, sentence in (
        ("folder", f"python -m tf2onnx.convert --saved-model {tmp_path / 'folder'} --output"),
        ("m.keras", "m.keras is Keras's format: pip install keras"),
    ):
        assert main([str(tmp_path / name), "--model", "demo", "--task", "regression"], {}) == 1
        assert sentence in capsys.readouterr().err


def test_a_folder_without_a_saved_model_and_a_stray_signature_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").touch()
    demo = ["--model", "demo", "--task", "regression"]

    assert main([str(tmp_path), *demo], {}) == 1
    assert "is a folder without saved_model.pb" in capsys.readouterr().err
    assert main([str(tmp_path / "m.onnx"), "--signature", "x", *demo], {}) == 1
    assert "--signature is for a TensorFlow SavedModel" in capsys.readouterr().err
