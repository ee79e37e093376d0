"""What can go wrong in training and is the user's to mend. Each is shown as one line, without a traceback."""


class TrainingError(Exception):
    """The message says what to change."""


class InvalidRecipe(TrainingError):
    """When a recipe does not exist, does not load, or its data do not fit its network."""


class InvalidHyperparameter(TrainingError):
    """When a name is unknown or a value does not have the declared type."""


class InvalidCheckpoint(TrainingError):
    """When a checkpoint cannot be read or was written by another run."""


class Diverged(TrainingError):
    """When the loss of a run is no number any more."""


class ExportFailed(TrainingError):
    """When no exporter produced a graph that computes what the network computes."""


class InvalidArtifact(TrainingError):
    """When an ONNX file, or what is said about it, cannot be published."""


class InvalidJob(TrainingError):
    """When a job request breaks the rules of CreateTrainingJob, or the job ended badly."""


class InvalidData(TrainingError):
    """When data cannot be read, or do not hold what the recipe needs of them."""


class MissingColumn(InvalidData):
    """When a column, an array or a channel that was named is not there."""


class InvalidValue(InvalidData):
    """When a value is missing where none may be, or is not what its column holds."""


class UnknownLabel(InvalidData):
    """When a class is none of the known ones."""


class NoRows(InvalidData):
    """When a file or a folder holds nothing to learn from."""


class WrongShape(InvalidData):
    """When rows, images or arrays differ in size where they may not."""


class CompressionFailed(TrainingError):
    """When a compression does not exist, or finds nothing to do."""
