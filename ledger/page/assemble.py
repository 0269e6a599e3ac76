"""Write `verify.html` from its sources: `python -m rlhf_audit_trail.ledger.page.assemble`.

The modules are put behind each other in the order of their imports, each as a function that
returns its exports. Comments and most spaces are left out, since the page has a limit of 80,000
bytes; lines and names stay as they are. The page's policy names script and style by their hashes,
so that a browser runs no other.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path
from typing import Final

from rlhf_audit_trail.ledger.page import PAGE_PATH

__all__ = ["assemble"]

SOURCES: Final = Path(__file__).parent / "sources"
_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.mjs";\n', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ((?:async )?(?:const|function|class) )(\w+)", re.MULTILINE)
_DOC: Final = re.compile(r"^ */\*\*.*?\*/\n", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"^ *//.*\n|(?<=[;,{)\]]) +// .*$", re.MULTILINE)
_INDENT: Final = re.compile(r"^[ ]+|^\n", re.MULTILINE)
# Lines without a template or pattern; in their texts in double quotes spaces have a meaning, too.
_PLAIN_LINE: Final = re.compile(r"^[^'`/\n]+$", re.MULTILINE)
_TEXT: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_SPACE: Final = re.compile(
    r" ?(=>|[=!]==|[=,{}():?;<>]|&&|\|\|) ?|(?<![-+]) ([-+*%|&^]|<<|>>>?) (?![-+])"
)
_STYLE_SPACE: Final = re.compile(r" ?([{};,]) ?|(?<=:) |;(?=\})")
_ABOUT: Final = "// Made from ledger/page/sources of rlhf-audit-trail, where it is explained.\n"


def assemble() -> bytes:
    """Return the page that the sources make; the same bytes each time."""
    style = _STYLE_SPACE.sub(r"\1", _INDENT.sub("", _source("page.css")))
    script = "\n" + _ABOUT + "".join(map(_function, _in_order("app.mjs")))
    policy = (
        f"default-src 'none'; script-src {_hashed(script)}; style-src {_hashed(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script}
    return re.sub(r"\{\{(\w+)\}\}", lambda x: parts[x[1]], _source("page.html")).encode()


def _source(name: str) -> str:
    return (SOURCES / name).read_text("utf-8")


def _in_order(name: str, seen: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return a module's name behind those of all it imports, each once."""
    for imported in _IMPORT.findall(_source(name)):
        if f"{imported}.mjs" not in seen:
            seen = _in_order(f"{imported}.mjs", seen)
    return (*seen, name)


def _function(name: str) -> str:
    """Return a module as a function that is called at once, its exports as names for the others."""
    text = _source(name)
    for pattern in (_IMPORT, _DOC, _COMMENT, _INDENT):
        text = pattern.sub("", text)
    exported = ",".join(name for _, name in _EXPORT.findall(text))
    body = _PLAIN_LINE.sub(lambda line: _squeezed(line[0]), _EXPORT.sub(r"\1\2", text))
    if not exported:
        return body
    return f"const {{{exported}}}=(()=>{{\n{body}return {{{exported}}}}})();\n"


def _squeezed(line: str) -> str:
    texts = _TEXT.split(line)  # every second one is in quotes
    texts[::2] = [_SPACE.sub(r"\1\2", code) for code in texts[::2]]
    return "".join(texts)


def _hashed(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def main() -> int:
    """Write the page; with `--check`, only say by the exit code whether it is up to date."""
    made = assemble()
    if sys.argv[1:] == ["--check"]:
        return int(not PAGE_PATH.is_file() or PAGE_PATH.read_bytes() != made)
    PAGE_PATH.write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
