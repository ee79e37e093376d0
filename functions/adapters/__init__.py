"""Adapters to AWS services, ONNX Runtime, child processes, clocks and memory limits."""
