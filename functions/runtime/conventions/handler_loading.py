"""Import of the handler that Lambda's variable _HANDLER names."""

import importlib
import sys
from typing import Any

from functions.runtime.errors import (
    BUILT_IN_CONFLICT,
    HANDLER_NOT_FOUND,
    IMPORT_ERROR,
    MALFORMED_HANDLER,
    SYNTAX_ERROR,
    Fault,
)

Handler = Any  # called with event and context; see loop.py for its attributes


def load_handler(name: str) -> Handler:
    """Import the handler `<module>.<attribute>`; slashes separate packages as dots do.

    Raises:
        Fault: it cannot be imported or is missing, in awslambdaric's words.
        Exception: any other error of the module's code.
    """
    try:
        module_name, attribute = name.rsplit(".", 1)
    except ValueError as error:
        raise Fault(MALFORMED_HANDLER, f"Bad handler '{name}': {error}") from None
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {module_name} as a handler module"
        raise Fault(BUILT_IN_CONFLICT, message)
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise Fault(IMPORT_ERROR, message) from error
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        message = f"Syntax error in module '{module_name}': {error}"
        raise Fault(SYNTAX_ERROR, message, trace) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        message = f"Handler '{attribute}' missing on module '{module_name}'"
        raise Fault(HANDLER_NOT_FOUND, message) from None
