"""Benchmarks, one script per measurement; each appends a JSON line to benchmarks/results/.

python -m benchmarks.cold_start
python -m benchmarks.warm_request
"""
