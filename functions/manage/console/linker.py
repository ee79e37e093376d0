"""Linker of ES modules into one script.

So the console takes one request. It knows the forms that the console's files have, and refuses
others: `import {a as b} from "x"`, `import a from "x"`, `export function|class|const`,
`export {a as b}`, `export default`. Each module becomes a function whose result holds its exports.
"""

import re
from collections.abc import Callable

IMPORT = re.compile(r"^\s*import\s*(?:\{([^}]*)\}|([\w$]+))\s*from\s*\"([^\"]+)\";?", re.MULTILINE)
DECLARATION = re.compile(r"^export\s+((?:async\s+)?function|class|const)\s+([\w$]+)", re.MULTILINE)
LIST = re.compile(r"export\s*\{([^}]*)\};?\s*$")
DEFAULT = re.compile(r"export default\s+")
LEFT = re.compile(r"^\s*(?:import|export)\b", re.MULTILINE)
# Comments, source maps' addresses among them: left empty, so that lines keep their numbers
COMMENT = re.compile(r"^[ \t]*//.*$", re.MULTILINE)


class LinkError(ValueError):
    """Error for a module whose imports or exports have another form."""


def link(entry: str, read: Callable[[str], str]) -> str:
    """Return one script of a module and all that it imports.

    `read` returns the text of a module by the name in its import.

    Raises:
        LinkError: a module imports itself in a circle, or has an import or export of another form.
    """
    done: dict[str, str] = {}
    _link(entry, read, done, ())
    names = {module: f"module_{number}" for number, module in enumerate(done)}
    parts = [f"const {names[module]} = (() => {{\n{text}\n}})();" for module, text in done.items()]
    script = '"use strict";\n' + "\n".join(parts)
    return re.sub(r"\0([^\0]+)\0", lambda match: names[match[1]], script)


def _link(
    module: str, read: Callable[[str], str], done: dict[str, str], path: tuple[str, ...]
) -> None:
    """Add a module to `done`, after those that it imports."""
    if module in done:
        return
    if module in path:
        raise LinkError(f"{module} imports itself: {' -> '.join((*path, module))}")
    text = COMMENT.sub("", read(module))
    for match in IMPORT.finditer(text):
        _link(match[3], read, done, (*path, module))
    done[module] = _as_function(module, text)


def _as_function(module: str, text: str) -> str:
    """Return a module's text as the body of a function."""
    text = IMPORT.sub(_constants, text)
    exports = [f"{name}: {name}" for _, name in DECLARATION.findall(text)]
    text = DECLARATION.sub(r"\1 \2", text)
    if match := LIST.search(text):
        exports += [_renamed(name, reverse=True) for name in match[1].split(",")]
        text = text[: match.start()]
    if DEFAULT.search(text):
        text = DEFAULT.sub("const exported = ", text)
        exports.append("default: exported")
    if left := LEFT.search(text):
        raise LinkError(f"{module}: {text[left.start() : left.start() + 60].strip()!r} is no form")
    return f"{text}\nreturn {{ {', '.join(exports)} }};"


def _constants(match: re.Match[str]) -> str:
    """Return an import as constants of the imported module's result."""
    names, default, module = match.groups()
    if default:
        return f"const {default} = \0{module}\0.default;"
    renamed = ", ".join(_renamed(name) for name in names.split(",") if name.strip())
    return f"const {{ {renamed} }} = \0{module}\0;"


def _renamed(name: str, reverse: bool = False) -> str:
    """Spell `a as b` as an object's property."""
    first, _, second = name.strip().partition(" as ")
    second = second.strip() or first
    return f"{second}: {first}" if reverse else f"{first}: {second}"
