"""Make foreign text safe to read, in the terminal, on the page and on the card."""

from __future__ import annotations

import re

# Marks that reorder or hide the text around them; a label could use them to read as another label.
_INVISIBLE = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF], "\ufffd")
# Control characters, as the pictures that Unicode has for them (U+2400 "NUL" ...).
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), "\ufffd") | _INVISIBLE


def visible(text: object) -> str:
    """One line of text in which nothing acts on its reader: white space is one space, control characters are pictures.

    Lone surrogates, which UTF-8 cannot hold, become U+FFFD.
    """
    line = re.sub(r"[ \t\n\r\f\v\x85\u2028\u2029]+", " ", str(text))
    return re.sub(r"[\ud800-\udfff]", "\ufffd", line.translate(_CONTROLS))


def cut(text: object, length: int = 400) -> str:
    """The first `length` characters, with an ellipsis where something is missing."""
    whole, enough = str(text), 100 * length  # the rest of a text of megabytes is not looked at
    line = visible(whole[:enough]).strip()
    return line if len(line) <= length and len(whole) <= enough else line[: length - 1].rstrip() + "…"
