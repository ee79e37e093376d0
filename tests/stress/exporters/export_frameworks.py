"""Script that exports ML framework models to ONNX with default settings.

    python tests/stress/exporters/export_frameworks.py FOLDER [NAME…]

Runs in an environment of its own (`make stress`, group `exporters`) and imports nothing of this
project. Each model gets a folder with the exporter's files and `expected.npz`: the inputs as
`in:<name>` and the framework's own answers as `out:<name or position>`.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"
warnings.simplefilter("ignore")

ROWS, COLUMNS, CLASSES = 200, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float32)
LABELS = (X @ RNG.normal(size=(COLUMNS, CLASSES))).argmax(axis=1)
TARGETS = X @ RNG.normal(size=COLUMNS) + RNG.normal(size=ROWS) / 10
TEXTS = np.array([f"{word} Word {n}" for n in range(50) for word in ("Good", "bad", "ANGER", "x")])
SENTIMENT = np.arange(len(TEXTS)) % 4 // 2
TRIED = 20  # rows of a request

Arrays = Mapping[str, Any]


def write(folder: Path, inputs: Arrays, outputs: Arrays) -> None:
    """Save request inputs and the framework's expected outputs as expected.npz."""
    arrays = {f"in:{name}": array for name, array in inputs.items()}
    arrays |= {f"out:{name}": array for name, array in outputs.items()}
    np.savez(folder / "expected.npz", **{name: np.asarray(a) for name, a in arrays.items()})


# --- scikit-learn


def sklearn_models() -> Iterator[tuple[str, Any]]:
    """Yield scikit-learn estimators to export, with their names."""
    from sklearn import (
        cluster,
        decomposition,
        ensemble,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    scaler = preprocessing.StandardScaler
    seed = {"random_state": 0}
    yield from {
        "linear": linear_model.LinearRegression(),
        "ridge": linear_model.Ridge(),
        "lasso": linear_model.Lasso(0.01),
        "elastic": linear_model.ElasticNet(0.01),
        "svr": svm.SVR(),
        "knn_regressor": neighbors.KNeighborsRegressor(),
        "tree_regressor": tree.DecisionTreeRegressor(max_depth=5, **seed),
        "forest_regressor": ensemble.RandomForestRegressor(20, **seed),
        "boosting_regressor": ensemble.GradientBoostingRegressor(**seed),
        "mlp_regressor": neural_network.MLPRegressor(hidden_layer_sizes=[16], **seed),
        "logistic": linear_model.LogisticRegression(max_iter=500),
        "sgd": linear_model.SGDClassifier(loss="log_loss", **seed),
        "bayes": naive_bayes.GaussianNB(),
        "knn": neighbors.KNeighborsClassifier(),
        "tree": tree.DecisionTreeClassifier(max_depth=5, **seed),
        "forest": ensemble.RandomForestClassifier(20, **seed),
        "extra_trees": ensemble.ExtraTreesClassifier(20, **seed),
        "boosting": ensemble.GradientBoostingClassifier(**seed),
        "adaboost": ensemble.AdaBoostClassifier(n_estimators=20, **seed),
        "mlp": neural_network.MLPClassifier(hidden_layer_sizes=[16], **seed),
        "svc": svm.LinearSVC(),
        "bagging": ensemble.BaggingClassifier(n_estimators=5, **seed),
        "voting": ensemble.VotingClassifier(
            [("a", naive_bayes.GaussianNB()), ("b", linear_model.LogisticRegression())],
            voting="soft",
            flatten_transform=False,
        ),
        "scaled": pipeline.make_pipeline(scaler(), linear_model.LogisticRegression()),
        "pca": pipeline.make_pipeline(decomposition.PCA(3), linear_model.LogisticRegression()),
        "kmeans": cluster.KMeans(3, **seed),
    }.items()  # fmt: skip


def answers(estimator: Any, x: Any) -> dict[str, Any]:
    """Return an estimator's predictions under the output names of skl2onnx."""
    if hasattr(estimator, "predict_proba"):
        probabilities = estimator.predict_proba(x)
        return {"label": estimator.predict(x), "probabilities": probabilities}
    if hasattr(estimator, "decision_function") and hasattr(estimator, "classes_"):
        return {"label": estimator.predict(x), "probabilities": estimator.decision_function(x)}
    if hasattr(estimator, "transform"):  # KMeans: label and distances
        return {"label": estimator.predict(x), "scores": estimator.transform(x)}
    return {"variable": estimator.predict(x).reshape(-1, 1)}


def export_sklearn(estimator: Any, folder: Path, **options: Any) -> None:
    """Fit a scikit-learn estimator and export it with skl2onnx."""
    from skl2onnx import to_onnx
    from sklearn.base import is_classifier

    estimator.fit(X, LABELS if is_classifier(estimator) else TARGETS)
    zipmap = {"zipmap": options["zipmap"]} if "zipmap" in options else None
    model = to_onnx(estimator, X[:1], options=zipmap)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    x = X[:TRIED]
    write(folder, {"X": x}, answers(estimator, x))


def export_text(folder: Path) -> None:
    """Train a scikit-learn TF-IDF text classifier and export it with skl2onnx."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, SENTIMENT)
    model = to_onnx(estimator, initial_types=[("text", StringTensorType([None]))])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    texts = TEXTS[:TRIED]
    write(folder, {"text": texts}, answers(estimator, texts))


# --- gradient boosting


def export_xgboost(folder: Path, *, classifier: bool) -> None:
    """Train an XGBoost model and export it with onnxmltools."""
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    kind = xgboost.XGBClassifier if classifier else xgboost.XGBRegressor
    estimator = kind(n_estimators=10, max_depth=4, n_jobs=1).fit(
        X, LABELS if classifier else TARGETS
    )
    model = convert_xgboost(estimator, initial_types=[("x", FloatTensorType([None, COLUMNS]))])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write(folder, {"x": X[:TRIED]}, answers(estimator, X[:TRIED]))


def export_lightgbm(folder: Path, *, classifier: bool, **options: Any) -> None:
    """Train a LightGBM model and export it with onnxmltools."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    kind = lightgbm.LGBMClassifier if classifier else lightgbm.LGBMRegressor
    estimator = kind(n_estimators=10, verbose=-1, n_jobs=1).fit(
        X, LABELS if classifier else TARGETS
    )
    types = [("x", FloatTensorType([None, COLUMNS]))]
    model = convert_lightgbm(estimator, initial_types=types, **options)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write(folder, {"x": X[:TRIED]}, answers(estimator, X[:TRIED]))


def export_catboost(folder: Path, *, classifier: bool) -> None:
    """Train a CatBoost model and export it with CatBoost's own exporter."""
    import catboost

    kind = catboost.CatBoostClassifier if classifier else catboost.CatBoostRegressor
    estimator = kind(iterations=10, thread_count=1, verbose=False, allow_writing_files=False)
    estimator.fit(X, LABELS if classifier else TARGETS)
    estimator.save_model(str(folder / "model.onnx"), format="onnx")
    x = X[:TRIED]
    if classifier:
        labels = estimator.predict(x).reshape(-1)
        outputs = {"label": labels, "probabilities": estimator.predict_proba(x)}
    else:
        outputs = {"predictions": estimator.predict(x).reshape(-1, 1)}
    write(folder, {"features": x}, outputs)


# --- torch


def export_torch(module: Any, inputs: Arrays, folder: Path, **options: Any) -> None:
    """Export a PyTorch module to ONNX with a dynamic batch size."""
    import torch

    module.eval()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        answer = module(*tensors.values())
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        module,
        tuple(tensors.values()),
        str(folder / "model.onnx"),
        input_names=list(inputs),
        output_names=["y"],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        verbose=False,
        **options,
    )
    write(folder, inputs, {"y": answer.numpy()})


def convolutions() -> Any:
    """Return a small PyTorch convolutional network."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def recurrent() -> Any:
    """Return a PyTorch LSTM with a linear head."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    return Recurrent()


IMAGES = {"image": RNG.normal(size=(4, 3, 16, 16)).astype(np.float32)}
SERIES = {"x": RNG.normal(size=(4, 12, 8)).astype(np.float32)}
TOKENS = {
    "input_ids": RNG.integers(0, 100, size=(3, 16)),
    "attention_mask": np.tril(np.ones((3, 16), np.int64))[[15 % 3, 1, 2]] | (np.arange(16) < 5),
}


def encoder() -> Any:
    """Return a randomly initialised BERT encoder from transformers."""
    import torch
    from transformers import BertConfig, BertModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
            config = BertConfig(vocab_size=100, intermediate_size=64, **sizes)
            self.model = BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    torch.manual_seed(0)
    return Encoder()


def decoder() -> Any:
    """Return a randomly initialised Llama decoder from transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
            config = LlamaConfig(
                vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, **heads
            )
            self.model = LlamaForCausalLM(config)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            options = {"attention_mask": attention_mask, "use_cache": False}
            return self.model(input_ids=input_ids, **options).logits

    torch.manual_seed(0)
    return Decoder()


# --- Keras


def keras_model() -> Any:
    """Return a small Keras network with convolutions and normalisation."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((16, 16, 3), name="image"), layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model(np.zeros((1, 16, 16, 3)))  # Keras exports what was called
    return model


def export_keras(folder: Path) -> None:
    """Export a Keras network to ONNX with Keras's own exporter."""
    model = keras_model()
    model.export(str(folder / "model.onnx"), format="onnx", verbose=False)
    image = IMAGES["image"].transpose(0, 2, 3, 1)
    write(folder, {"image": image}, {"0": model.predict(image, verbose=0)})


def export_tf2onnx(folder: Path) -> None:
    """Export a Keras network to ONNX with tf2onnx."""
    import tensorflow as tf
    import tf2onnx

    model = keras_model()
    image = IMAGES["image"].transpose(0, 2, 3, 1)
    signature = [tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")]
    function = tf.function(lambda image: model(image))
    tf2onnx.convert.from_function(function, signature, output_path=str(folder / "model.onnx"))
    write(folder, {"image": image}, {"0": model.predict(image, verbose=0)})


def exports() -> dict[str, Callable[[Path], None]]:
    """Return the export functions by model name."""
    table: dict[str, Callable[[Path], None]] = {}
    for name, estimator in sklearn_models():
        table[f"sklearn_{name}"] = lambda folder, e=estimator: export_sklearn(e, folder)
        if hasattr(estimator, "predict_proba"):
            table[f"sklearn_{name}_array"] = lambda folder, e=estimator: export_sklearn(
                e, folder, zipmap=False
            )
    table["sklearn_tfidf"] = export_text
    for kind in ("classifier", "regressor"):
        is_classifier = {"classifier": kind == "classifier"}
        table[f"xgboost_{kind}"] = lambda folder, o=is_classifier: export_xgboost(folder, **o)
        table[f"lightgbm_{kind}"] = lambda folder, o=is_classifier: export_lightgbm(folder, **o)
        table[f"catboost_{kind}"] = lambda folder, o=is_classifier: export_catboost(folder, **o)
    table["lightgbm_array"] = lambda folder: export_lightgbm(folder, classifier=True, zipmap=False)
    networks = {
        "conv": (convolutions, IMAGES), "lstm": (recurrent, SERIES),
        "encoder": (encoder, TOKENS), "decoder": (decoder, TOKENS),
    }  # fmt: skip
    for name, (make, inputs) in networks.items():
        table[f"torch_{name}"] = lambda folder, m=make, i=inputs: export_torch(m(), i, folder)
        table[f"torch_{name}_inline"] = lambda folder, m=make, i=inputs: export_torch(
            m(), i, folder, external_data=False
        )
    table["keras"] = export_keras
    table["tf2onnx"] = export_tf2onnx
    return table


def main(target: Path, names: list[str]) -> None:
    """Export the named models to ONNX, or all, into subfolders of `target`."""
    table = exports()
    for name in names or table:
        folder = target / name
        folder.mkdir(parents=True)
        try:
            table[name](folder)
        except Exception as error:  # the other exporters still run; the caller reports it
            (folder / "failed.txt").write_text(f"{type(error).__name__}: {error}")
        print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
