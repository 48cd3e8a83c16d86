"""The files of a new plugin (`wkhost plugin new NAME`)."""

from __future__ import annotations

import re
from pathlib import Path

_FILES = Path(__file__).parent
_SUFFIX = ".txt"
_NUMBER = re.compile(r"[a-z][a-z0-9._-]{0,62}")


def render(name: str, target_dir: Path) -> list[Path]:
    """Write a new plugin called `name` into `target_dir` (made if absent); returns the files.

    Raises ValueError for a name that cannot be a plugin's number, FileExistsError rather than
    overwrite anything.
    """
    if not _NUMBER.fullmatch(name):
        raise ValueError(
            f"name: expected a-z first, then a-z, 0-9, '.', '_' or '-', at most 63: {name!r}"
        )
    class_name = "".join(part.capitalize() for part in re.split(r"[._-]+", name)) or name
    templates = sorted(_FILES.glob("*" + _SUFFIX))
    targets = [target_dir / template.name.removesuffix(_SUFFIX) for template in templates]
    for target in targets:
        if target.exists():
            raise FileExistsError(f"{target} exists already")
    target_dir.mkdir(parents=True, exist_ok=True)
    for template, target in zip(templates, targets, strict=True):
        text = template.read_text("utf-8")
        target.write_text(text.replace("{{name}}", name).replace("{{class}}", class_name), "utf-8")
    return targets
