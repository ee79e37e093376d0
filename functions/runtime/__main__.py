"""Run the Lambda function that _HANDLER names: python -I -S functions/runtime/__main__.py."""

import gc
import sys

if __name__ == "__main__":  # multiprocessing's "spawn" runs this file in its children, too
    gc.disable()  # collections would take 2 ms of the imports, which leave no garbage

    # Isolated, the interpreter knows neither this file's folder nor PYTHONPATH.
    sys.path.insert(0, __file__.rpartition("/functions/")[0])

    from functions.runtime.main import main

    gc.freeze()  # imports stay, so no collection has to look at them
    gc.enable()
    main()
