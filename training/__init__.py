"""Training: recipes become one self-describing model.onnx, on a laptop or as a SageMaker job."""
