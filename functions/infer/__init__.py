"""Lambda function that serves registered models over Open Inference Protocol v2."""
