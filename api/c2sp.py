"""The static paths of a log, as any C2SP client expects them (c2sp.org/tlog-tiles).

A log's origin is the URL of these paths without its scheme: the log
`acme.example/rlhf/run42` is served below `/rlhf/run42`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.responses import PlainTextResponse, Response

from rlhf_audit_trail.api.asking import LogOfPath
from rlhf_audit_trail.api.problems import TileMissing, describe
from rlhf_audit_trail.ledger.log import Log
from rlhf_audit_trail.ledger.tiles import TILE_HEIGHT, TILE_WIDTH, encode_entry_tile, tile_path

__all__ = ["parse_tile_path", "router"]

_FOREVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_SHORTLY: Final = {"Cache-Control": "public, max-age=5"}
# six groups of three digits are past any tile that 2**63 entries could have
_TILE: Final = re.compile(
    r"(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)
_OCTETS: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(prefix="/rlhf/{run}", tags=["static log"], responses=describe(404))


@router.get(
    "/checkpoint",
    summary="The newest signed tree head",
    response_class=PlainTextResponse,
    responses={200: {"description": "A signed note (c2sp.org/tlog-checkpoint)."}},
)
def checkpoint(log: LogOfPath) -> PlainTextResponse:
    """Return the note exactly as it was signed, and its witnesses' lines."""
    note = log.served_note()
    if note is None:
        raise TileMissing(f"{log.origin} has no signed tree head yet")
    return PlainTextResponse(note, headers=_SHORTLY)


@router.get(
    "/vkey",
    summary="The log's public keys, one vkey a line",
    response_class=PlainTextResponse,
    responses={200: {"description": "Ed25519 first, then ML-DSA-44."}},
)
def vkey(log: LogOfPath) -> PlainTextResponse:
    """Return the keys; whoever pins them should have them from a second place too."""
    text = "".join(f"{key}\n" for key in log.keys_now())
    return PlainTextResponse(text, headers=_SHORTLY)


@router.get(
    "/tile/{path:path}",
    summary="A hash tile or entry tile",
    response_class=Response,
    responses={
        200: {"description": "The tile; it never changes.", "content": _OCTETS},
        **describe(410),
    },
)
def tile(
    log: LogOfPath,
    path: Annotated[
        str,
        Path(
            description="`<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`; N in groups of three digits.",
            examples=["0/x001/x234/067", "0/000.p/112", "entries/000"],
        ),
    ],
) -> Response:
    """Return a tile of the newest signed tree, or a narrower partial one of an older tree."""
    level, tile_index, width = parse_tile_path(path)
    signed = log.published()
    height = 0 if level == "entries" else TILE_HEIGHT * int(level)
    hashes = (signed.head.size if signed else 0) >> height
    if tile_index * TILE_WIDTH + width > hashes:
        raise TileMissing(f"the newest signed tree head of {log.origin} has no such tile")
    return Response(
        _content(log, level, tile_index, width),
        media_type="application/octet-stream",
        headers=_FOREVER,
    )


def _content(log: Log, level: str, tile_index: int, width: int) -> bytes:
    if level != "entries":
        return log.hash_tile(int(level), tile_index, width)
    first = tile_index * TILE_WIDTH
    return encode_entry_tile(entry.data for entry in log.entries(first, first + width))


def parse_tile_path(path: str) -> tuple[str, int, int]:
    """Return level (a number or `entries`), tile index and width of a tile's path.

    Raises:
        TileMissing: any spelling but the one of tlog-tiles.
    """
    match = _TILE.fullmatch(path)
    if match is not None:
        level, name, partial = match.groups()
        tile_index = int(name.replace("x", "").replace("/", ""))
        width = int(partial) if partial else TILE_WIDTH
        # printed again it must be the same: no leading groups of zeros, no width of 256
        if width <= TILE_WIDTH and tile_path(level, tile_index, width) == f"tile/{path}":
            return level, tile_index, width
    raise TileMissing("no tile has a path of this form")
