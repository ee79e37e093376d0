"""Compatibility tests of models as other tools export them.

    python -m tests.stress.exporters [NAME…]

Names are those of models of other frameworks, or beginnings of names of language models
(`optimum_gemma`, `genai`, `sentences`, `import`). Without any, all are tested.
"""

import sys
from collections.abc import Sequence

from tests.stress.exporters import frameworks, imports, language

LANGUAGE = ("optimum", "genai", "sentences", "backend", "import")


def main(arguments: Sequence[str]) -> int:
    """Run the tests; return 1 if there are problems."""
    own = [name for name in arguments if name.startswith(LANGUAGE)]
    others = [name for name in arguments if name not in own]
    problems = 0
    if others or not arguments:
        problems += frameworks.run(others)
    if own or not arguments:
        problems += language.run([name for name in own or LANGUAGE if name != "import"])
    if "import" in own or not arguments:
        problems += imports.run()
    print(f"{problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
