"""What every section of the config is, and the checks that several sections share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Unknown keys are refused; a section never changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError unless every head gets an equal and even number of channels, which RoPE
    turns in pairs."""
    if width < 1 or width % (2 * num_heads):
        raise ValueError(f"width {width} must be an even multiple of num_heads {num_heads}")
