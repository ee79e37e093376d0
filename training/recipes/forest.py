"""Forest recipe: classify handwritten digits by random forest with grid search.

Test accuracy 98.9 % on 359 held-out images; nearest class mean 88.3 %. 20 s on a shared 2-core CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

from training.data import digits
from training.recipe import Hyperparameters, Recipe


@dataclass(frozen=True)
class Forest(Hyperparameters):
    trees: int = 60  # number of trees
    depth: tuple[int, ...] = (6, 14)  # tried by the grid search
    pixels: tuple[float, ...] = (0.02, 0.1)  # shares of the pixels that a split may choose from
    folds: int = 3  # folds of the cross-validation


def model(h: Forest) -> GridSearchCV:
    grid = {"max_depth": list(h.depth), "max_features": list(h.pixels)}
    return GridSearchCV(RandomForestClassifier(h.trees), grid, cv=h.folds)


recipe = Recipe(
    name="forest",
    description="A handwritten digit, 0 to 9, on a 28x28 grey image, by a forest of decision "
    "trees. Not MNIST.",
    task="classification",
    preprocessing="grey image scaled bilinearly to 28x28, ink 1.0 and paper 0.0, float32",
    hyperparameters=Forest,
    data=digits,
    model=model,
)
