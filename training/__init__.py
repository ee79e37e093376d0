"""Training of machine learning models: a recipe file becomes one self-describing model.onnx."""
