"""Training: from a recipe to one self-describing model.onnx."""
