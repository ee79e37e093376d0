"""Files as users have them: a CSV table and NPZ arrays."""

from pathlib import Path
from typing import Any

import numpy as np

ROWS = [
    f"{20 + row},{'basic' if row % 3 else 'full'},{row}.5,{'yes' if row % 2 else 'no'},"
    f"{f'{row} kg' if row % 2 else f'{row * 1000}g'},{'stays' if row % 2 else 'leaves'},c{row // 4}"
    for row in range(40)
]
HEADER = "age,plan,fee,active,weight,churn,customer"


def csv_file(
    folder: Path, rows: list[str] = ROWS, header: str = HEADER, name: str = "churn.csv"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def changed(row: int, old: str, new: str) -> list[str]:
    return [text.replace(old, new) if number == row else text for number, text in enumerate(ROWS)]


def npz(folder: Path, name: str = "a.npz", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    y = np.arange(60) % 3
    np.savez(folder / name, **{"image": np.random.default_rng(0).random((60, 4, 4)), "y": y} | more)
    return folder
