"""The project's own code: which source files a run has imported, each by its digest.

Own is what lies below the working directory, or below the folder (or package) of the script
that was started. Installed packages are told by their versions; see `capture.environment`.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rlhf_audit_trail.capture import file_digest

__all__ = ["listing", "own_sources"]

_HERE: Final = Path(__file__).parents[1]
# from a checkout, two of our packages are links to folders beside this one
_OURSELVES: Final = tuple((_HERE / name).resolve() for name in ("", "ledger", "api"))
_started: Final[list[Path]] = []
_STDLIB: Final = Path(sysconfig.get_path("stdlib")).resolve()
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


def listing() -> bytes:
    """Return a line `<sha256>  <path>` for each own source file, sorted by path; may be empty.

    Paths are relative to the folder they were found below, as `sha256sum --check` reads them.
    """
    lines = []
    for name, path in sorted(own_sources().items()):
        try:
            lines.append(f"{file_digest(path)}  {name}\n")
        except OSError:  # gone since it was imported
            continue
    return "".join(lines).encode("utf-8", "surrogateescape")


def own_sources() -> dict[str, Path]:
    """Return the own source files that are imported now, by their relative path."""
    roots = _roots()
    found: dict[str, Path] = {}
    for path in _imported():
        root = next((root for root in roots if path.is_relative_to(root)), None)
        if root is not None and not path.is_relative_to(_STDLIB):
            found[path.relative_to(root).as_posix()] = path
    return found


def _roots() -> list[Path]:
    """Return the working directory and the folder of the script, or of its outermost package."""
    roots = [Path.cwd().resolve()]
    script = _script()
    if script is not None:
        folder = script.parent
        while (folder / "__init__.py").is_file() and folder != folder.parent:
            folder = folder.parent
        roots.append(folder)
    return roots


def _script() -> Path | None:
    """Return the script that was started; its module forgets its file before the process ends."""
    found = _file_of(sys.modules.get("__main__"))
    if found is not None and not _started:
        _started.append(found)
    return _started[0] if _started else None


def _imported() -> Iterator[Path]:
    script = _script()
    if script is not None:
        yield script
    for module in list(sys.modules.values()):
        path = _file_of(module)
        if path is not None and not any(map(path.is_relative_to, _OURSELVES)):
            yield path  # ours are told by their version


def _file_of(module: Any) -> Path | None:
    # not by getattr: a module that loads its parts when asked may do so now
    name = getattr(module, "__dict__", {}).get("__file__")
    if not isinstance(name, str) or not name.endswith(".py"):
        return None
    if any(place in name for place in _INSTALLED):  # thousands, and looking at a path takes time
        return None
    path = Path(name).resolve()
    return path if path.is_file() else None
