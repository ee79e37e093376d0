"""Words from raw audio: a log-mel spectrum and three convolutions over time, judged by speakers never heard.

Test accuracy 98.6 % mean of 3 seeds at 0 dB, when noise is as loud as the voice, on 240 recordings of 6 held-out
speakers, against 66.7 % of a logistic regression on the mean spectrum; at -6 dB 95.8 against 57.9 %, at -12 dB 71.2
against 38.3 %. 15 s with import, export and proof on a shared 2-core CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training import networks
from training.data import Dataset, synthetic
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class Speech(NetworkHyperparameters):
    epochs: int = 20
    lr: float = 3e-3
    batch_size: int = 32
    snr_db: float = 0.0  # of the white noise in all parts: how much louder the voice is
    bands: int = 32
    width: int = 64
    dropout: float = 0.3


def data(_: object, h: Speech) -> Dataset:
    return synthetic.speech(snr_db=h.snr_db)


def model(h: Speech) -> nn.Module:
    return networks.Listener(
        synthetic.RATE, len(synthetic.WORDS), bands=h.bands, width=h.width, dropout=h.dropout
    )


recipe = Recipe(
    name="speech",
    description="Which of ten two-vowel words is spoken, in speech-like audio that a generator made.",
    task="classification",
    preprocessing="one channel at 8000 samples a second, -1 to 1, at any loudness, 0.1 to 1 seconds around one word",
    dynamic={"audio": {1: "samples"}},
    sizes={"samples": (800, 8000)},
    hyperparameters=Speech,
    data=data,
    model=model,
    search={"width": (32, 64, 128), "bands": (16, 32, 48), "lr": Range(3e-4, 1e-2, log=True)},
)
