"""One script a question. Each ends with one JSON line, which it adds to benchmarks/results/.

python -m benchmarks.cold_start
python -m benchmarks.warm_request
"""
