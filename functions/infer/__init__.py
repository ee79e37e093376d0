"""Lambda: Open Inference Protocol v2 over every registered model."""
