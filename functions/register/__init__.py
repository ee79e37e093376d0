"""Lambda function that registers each upload as a version of a model."""
