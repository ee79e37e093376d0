"""Estimators of xgboost, LightGBM and CatBoost in recipes, in an environment that has them.

    make .venv-boosting/.done

The environment is no part of `make test`: without it, these tests are skipped.
"""

import json
import subprocess
from pathlib import Path

import pytest

PYTHON = Path(".venv-boosting/bin/python")
pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="needs xgboost, lightgbm, catboost: make .venv-boosting/.done"
    ),
]
EXPORTS = """
import json
import warnings

import numpy as np
from catboost import CatBoostClassifier, CatBoostRegressor
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier, XGBRegressor

from training.data import Examples
from training.export import sklearn_exporter
from training.fitting import estimators

warnings.simplefilter("ignore")
SMALL = {"n_estimators": 15}
QUIET = SMALL | {"verbose": -1}
CASES = [
    (kind, load, settings)
    for kind, settings in [
        (XGBClassifier, SMALL), (LGBMClassifier, QUIET), (CatBoostClassifier, SMALL),
    ]
    for load in (load_wine, load_breast_cancer)
] + [
    (XGBRegressor, load_diabetes, SMALL), (LGBMRegressor, load_diabetes, QUIET),
    (CatBoostRegressor, load_diabetes, SMALL),
]
mismatches = {}
for kind, load, settings in CASES:
    x, y = load(return_X_y=True)
    inputs = {"x": x.astype(np.float32)}
    output = "value" if load is load_diabetes else "probabilities"
    for steps in ([], [StandardScaler()]):
        model = make_pipeline(*steps, kind(**settings))
        estimators.fit(model, Examples(inputs, y), seed=3)
        exported = sklearn_exporter.export(model, inputs, output)
        name = "+".join([kind.__name__, load.__name__, *(["scaled"] if steps else [])])
        mismatches[name] = exported.mismatch_rate
print(json.dumps(mismatches))
"""
RECIPE = """
from sklearn.datasets import load_wine
from training.data import Examples, split
from training.recipe import Hyperparameters, Recipe
from xgboost import XGBClassifier

def data():
    x, y = load_wine(return_X_y=True)
    return split(Examples({"x": x}, y), source="sklearn:wine", sha256="0", labels=list("abc"))

recipe = Recipe(
    name="wine", description="A grower of wine.", task="classification",
    hyperparameters=Hyperparameters, data=data, model=lambda: XGBClassifier(n_estimators=20),
)
"""


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [PYTHON.absolute(), *arguments], capture_output=True, text=True, timeout=600, check=False,
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2"},
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_kind_of_estimator_is_exported_exactly(tmp_path: Path) -> None:
    out = run("-c", EXPORTS, folder=tmp_path)
    mismatches = json.loads(out.splitlines()[-1])

    assert len(mismatches) == 18
    assert set(mismatches.values()) == {0.0}
    assert list(tmp_path.iterdir()) == []  # CatBoost writes no folder of its own


def test_a_recipe_with_xgboost_ends_in_a_model(tmp_path: Path) -> None:
    (tmp_path / "wine.py").write_text(RECIPE)

    out = run(
        "-m", "training", "train", "wine.py", "--model-dir", "out", "--device", "cpu",
        folder=tmp_path,
    )  # fmt: skip

    assert "exporting and proving the graph" in out
    assert (tmp_path / "out" / "model.onnx").exists()
