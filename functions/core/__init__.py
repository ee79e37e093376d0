"""The rules: no AWS, no runtime, no environment."""
