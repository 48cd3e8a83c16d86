"""Do a plugin's imports exist? A script for a child process; it runs none of the plugin's code.

Started by boot as `import_check.py FOLDER MAIN`. Reads MAIN and the modules of FOLDER that it
imports, and prints one line per module that cannot be found and per file that is not Python.
Imports inside a function, an `if` or a `try` are the author's own business: they may be meant to
fail.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys


def main() -> int:
    folder, main_file = sys.argv[1:]
    sys.path.insert(0, folder)
    wrong: list[str] = []
    seen: set[str] = set()
    waiting = [os.path.join(folder, main_file)]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        shown = os.path.relpath(path, folder)
        try:
            wanted = imports(path)
        except SyntaxError as error:
            wrong.append(f"{shown}:{error.lineno or 1}: not Python: {error.msg}")
            continue
        for line, name in wanted:
            found, local = find(name, folder)
            if not found:
                wrong.append(f"{shown}:{line}: no module named {name!r}")
            elif local:
                waiting.append(local)
    for text in wrong:
        print(text)  # noqa: T201 - the answer of this program
    return 1 if wrong else 0


def imports(path: str) -> list[tuple[int, str]]:
    """Return (line, top-level module name) of the unconditional absolute imports of a file."""
    with open(path, "rb") as file:
        source = file.read()
    found: list[tuple[int, str]] = []
    for node in ast.parse(source, path).body:
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.lineno, node.module.partition(".")[0]))
    return found


def find(name: str, folder: str) -> tuple[bool, str]:
    """Return whether the module exists, and its file if it is the plugin's own."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False, ""
    origin = spec.origin or ""
    own = origin.startswith(folder + os.sep) and origin.endswith(".py")
    return True, origin if own else ""


if __name__ == "__main__":
    sys.exit(main())
