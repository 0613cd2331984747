"""What every section of the config is, and the checks that several sections share."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """Unknown keys are refused; a section never changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
    # Settings that came after run folders were first made: they are written only where they are not the default, so
    # that a folder which knows nothing of them stays valid.
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain = dump(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                plain.pop(name, None)
        return plain


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless every head gets an equal and even number of channels, which RoPE turns in pairs."""
    if width < 1 or width % (2 * heads):
        raise ValueError(f"width {width} must be an even multiple of heads {heads}")
