"""The rules: no AWS, no runtime, no environment."""

VERSION = "0.1.0"  # of Mayfly; a test compares it with pyproject.toml
