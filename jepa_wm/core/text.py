"""Text that others wrote: with or without a byte order mark, in UTF-8 or, where the mark says so,
UTF-16 or UTF-32."""

from __future__ import annotations

import codecs
from pathlib import Path

from jepa_wm.core.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does, so it is asked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, its line endings as they are; UserError for one that is none, OSError as
    ever."""
    return decoded(path.read_bytes(), path)


def decoded(content: bytes, name: Path | str) -> str:
    """The text that bytes stand for; UserError for what no mark and no UTF-8 explains: nothing is
    guessed."""
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{name}: is not UTF-8 text (character {text.index(chr(0))} is a zero); save it as UTF-8"
        )
    return text
