"""Run the Lambda function that _HANDLER names: python -I -S functions/runtime/__main__.py."""

import sys

# Isolated, the interpreter knows neither this file's folder nor PYTHONPATH.
sys.path.insert(0, __file__.rpartition("/functions/")[0])

from functions.runtime.main import main

main()
