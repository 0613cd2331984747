"""A contact sheet: small pictures in a grid, each with its name below."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.core.errors import UserError

SIDE, GAP, LINE, ACROSS = (
    160,
    8,
    20,
    6,
)  # px of a picture's longer side, between pictures, of a name; pictures in a row
GROUND, TEXT = (18, 20, 26), (232, 234, 238)
LETTERS = 24  # of a name; a longer one keeps its end


def contact_sheet(path: Path, pictures: Mapping[str, np.ndarray]) -> str:
    """Write a PNG of named pictures [h, w, 3] uint8 of any size; returns its path.

    UserError for a path that is no .png, or when there is nothing to show.
    """
    if path.suffix != ".png":
        raise UserError(f"{path}: the sheet is a PNG; let its name end in .png")
    if not pictures:
        raise UserError(
            f"{path}: no picture could be read, so there is no sheet; see what is broken without "
            "--sheet"
        )
    across = min(ACROSS, len(pictures))
    cell = SIDE + GAP
    size = (across * cell + GAP, math.ceil(len(pictures) / across) * (cell + LINE) + GAP)
    sheet = Image.new("RGB", size, GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (name, picture) in enumerate(pictures.items()):
        left, top = GAP + i % across * cell, GAP + i // across * (cell + LINE)
        image = Image.fromarray(picture)
        scale = SIDE / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        )
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        label = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
        pen.text(
            (left + SIDE / 2, top + SIDE + LINE / 2), label, fill=TEXT, font=font, anchor="mm"
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return str(path)
