"""Training exceptions for mistakes a user can fix: recipe, data, settings, export.

Each is printed as one line, without a traceback.
"""


class TrainingError(Exception):
    """Base class of training errors; each message says what to change."""


class InvalidRecipe(TrainingError):
    """Error for a recipe that is missing, unloadable, or contradicts its data."""


class InvalidHyperparameter(TrainingError):
    """Error for a hyperparameter with unknown name, wrong type or invalid value."""


class InvalidConfig(TrainingError):
    """Error for a missing, unreadable or wrong run.yaml."""


class InvalidCheckpoint(TrainingError):
    """Error for a training checkpoint that is unreadable or from another run."""


class Diverged(TrainingError):
    """Error for a training run whose loss became NaN or infinite."""


class ExportFailed(TrainingError):
    """Error for a model whose ONNX export fails or gives different outputs."""


class InvalidArtifact(TrainingError):
    """Error for an ONNX file, manifest or sample that cannot be published."""


class InvalidModelFile(TrainingError):
    """Error for a GGUF file or model folder that cannot be imported."""


class InvalidJob(TrainingError):
    """Error for an invalid SageMaker job request, or a job that failed."""


class InvalidData(TrainingError):
    """Error for data that are unreadable or lack what the recipe needs."""


class MissingColumn(InvalidData):
    """Error for a column, array or data channel that does not exist."""


class InvalidValue(InvalidData):
    """Error for a column value that is missing or of wrong type."""


class UnknownLabel(InvalidData):
    """Error for a class label that is not among the known labels."""


class NoRows(InvalidData):
    """Error for a data file or folder without any rows."""


class WrongShape(InvalidData):
    """Error for rows, images or arrays whose sizes must agree but differ."""


class CompressionFailed(TrainingError):
    """Error for a compression method unknown or inapplicable to the model."""
