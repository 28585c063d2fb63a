"""Find where a text file stops being UTF-8, and say how to convert it."""

from __future__ import annotations

import codecs
from pathlib import Path


def explain_encoding(path: Path) -> str:
    """One sentence that names the first byte that is not UTF-8 and how to convert the file; "" where all is well."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # the decoder prepends the bytes that it kept from the block before
                kept = len(error.object) - len(block)
                place = offset - kept + error.start
                line += error.object[: error.start].count(b"\n") - error.object[:kept].count(b"\n")
                return _sentence(path, error.object[error.start], place, line)
            if not block:
                return ""
            offset += len(block)
            line += block.count(b"\n")


def _sentence(path: Path, byte: int, place: int, line: int) -> str:
    source = "UTF-16" if place == 0 and byte in (0xFE, 0xFF) else "WINDOWS-1252"
    converted = f"{path.stem}-utf8{path.suffix}"
    return (
        f"Expected UTF-8 in {path.name}; byte 0x{byte:02X} at position {place} (line {line}) is not. "
        f"Convert it: iconv -f {source} -t UTF-8 {path.name} > {converted}"
    )
