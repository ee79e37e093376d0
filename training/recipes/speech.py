"""Speech recipe: classify spoken words by convolutions over a log-mel spectrogram.

Test accuracy on 240 recordings of 6 held-out speakers, mean of 3 seeds; logistic regression on the
mean spectrum in brackets: 98.6 % (66.7 %) at 0 dB, when noise is as loud as the voice; 95.8 %
(57.9 %) at -6 dB; 71.2 % (38.3 %) at -12 dB. 15 s with import, export and proof on a shared 2-core
CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data import Dataset, synthetic
from training.recipe import NetworkHyperparameters, Range, Recipe


@dataclass(frozen=True)
class Speech(NetworkHyperparameters):
    epochs: int = 20  # passes over the training rows
    lr: float = 3e-3
    batch_size: int = 32
    snr_db: float = 0.0  # voice over white noise in dB, in all parts of the data
    bands: int = 32  # mel bands of the spectrogram
    width: int = 64  # channels of the convolutions
    dropout: float = 0.3  # share of values set to 0 in training


class LogMel(nn.Module):
    """Log-mel spectrogram layer: audio (batch, samples) → (batch, bands, frames).

    Each spectrogram has mean 0. The Fourier transform is a convolution with fixed waves, so that
    the graph contains it. Loudness is a constant in the logarithm, which subtracting the mean
    removes.
    """

    waves: Tensor
    triangles: Tensor

    def __init__(
        self, rate: int, *, bands: int = 32, window: int = 256, hop: int = 80, lowest: float = 60.0
    ) -> None:
        super().__init__()
        self.hop = hop
        waves = _fourier_waves(window)
        triangles = _mel_triangles(rate, bands, window, lowest)
        self.register_buffer("waves", waves[:, None].float(), persistent=False)
        self.register_buffer("triangles", triangles.float(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = functional.conv1d(audio.unsqueeze(1), self.waves, stride=self.hop)
        cosine, sine = spectrum.chunk(2, 1)
        bands = (self.triangles @ (cosine**2 + sine**2) + 1e-6).log()
        return bands - bands.mean((1, 2), keepdim=True)


def _fourier_waves(window: int) -> Tensor:
    """Build Hann-windowed cosines and sines, the filters of a Fourier transform.

    They are (2 x frequencies, window).
    """
    frequency = torch.arange(window // 2 + 1, dtype=torch.float64)
    sample = torch.arange(window, dtype=torch.float64)
    angle = 2 * math.pi / window * frequency[:, None] * sample
    return torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(window, dtype=torch.float64)


def _mel_triangles(rate: int, bands: int, window: int, lowest: float) -> Tensor:
    """Build triangular mel filters (bands, frequencies), equally wide in mel."""
    mels = torch.linspace(_mel(lowest), _mel(rate / 2), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hertz = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(hertz: float) -> float:
    """Convert a frequency from Hz to mel (O'Shaughnessy 1987)."""
    return 2595 * math.log10(1 + hertz / 700)


class Listener(nn.Module):
    """Convolutional network over time: audio (batch, samples) → (batch, outputs).

    Takes any length from a tenth of a second. The last convolution is pooled by mean and maximum.
    """

    def __init__(
        self, rate: int, outputs: int, *, bands: int = 32, width: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [LogMel(rate, bands=bands)]
        for channels in (bands, width):
            layers += [
                nn.Conv1d(channels, width, 5, padding=2),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.MaxPool1d(2),
                nn.Dropout(dropout),
            ]
        layers += [nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, audio: Tensor) -> Tensor:
        states = self.layers(audio)
        answer: Tensor = self.head(torch.cat([states.mean(2), states.amax(2)], 1))
        return answer


def data(_: object, h: Speech) -> Dataset:
    return synthetic.speech(snr_db=h.snr_db)


def model(h: Speech) -> nn.Module:
    classes = len(synthetic.WORDS)
    return Listener(synthetic.RATE, classes, bands=h.bands, width=h.width, dropout=h.dropout)


recipe = Recipe(
    name="speech",
    description="Which of ten two-vowel words is spoken, in speech-like audio that a generator "
    "made.",
    task="classification",
    preprocessing="one channel at 8000 samples a second, -1 to 1, at any loudness, 0.1 to 1 "
    "seconds around one word",
    dynamic={"audio": {1: "samples"}},
    sizes={"samples": (800, 8000)},
    hyperparameters=Speech,
    data=data,
    model=model,
    search={"width": (32, 64, 128), "bands": (16, 32, 48), "lr": Range(3e-4, 1e-2, log=True)},
)
