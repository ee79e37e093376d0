"""Errors of training that the user can fix.

Each is printed as one line, without a traceback.
"""


class TrainingError(Exception):
    """Base of errors that the user can fix; messages name the change."""


class InvalidRecipe(TrainingError):
    """Recipe that is missing, does not load, or contradicts its data."""


class InvalidHyperparameter(TrainingError):
    """Hyperparameter with an unknown name or a value of another type."""


class InvalidCheckpoint(TrainingError):
    """Checkpoint that cannot be read or was written by another run."""


class Diverged(TrainingError):
    """Training run whose loss became NaN or infinite."""


class ExportFailed(TrainingError):
    """Export without a graph that computes what the model computes."""


class InvalidArtifact(TrainingError):
    """ONNX file, manifest or sample that cannot be published."""


class InvalidJob(TrainingError):
    """Job request that breaks CreateTrainingJob's rules, or job that failed."""


class InvalidData(TrainingError):
    """Data that cannot be read or lack something that the recipe needs."""


class MissingColumn(InvalidData):
    """Column, array or channel that was named and does not exist."""


class InvalidValue(InvalidData):
    """Value that is missing, or of another type than its column."""


class UnknownLabel(InvalidData):
    """Class that is none of the known labels."""


class NoRows(InvalidData):
    """File or folder without any rows."""


class WrongShape(InvalidData):
    """Rows, images or arrays whose sizes differ and must not."""


class CompressionFailed(TrainingError):
    """Compression that does not exist or does not apply to the model."""
