"""Settings of the frozen features."""

from __future__ import annotations

from pydantic import Field, model_validator

from jepa_wm.core.settings import Section


class FeatureSettings(Section):
    """The frozen encoder, and its features on disk."""

    # whether the features of all frames are kept on disk; false: trainings encode the frames that
    # they ask for, anew each time, which takes no room
    store: bool = True
    # every how many frames are encoded; must divide dynamics.frameskip
    stride: int = Field(1, ge=1)
    num_norm_frames: int = 4000  # frames whose mean and spread standardise the features
    # the encoder, if not the run's own: timm/NAME, or vjepa2/SIZE (vit_large, ...)
    backbone: str | None = None
    # of timm: "published" fetches them, null leaves it random; of vjepa2: their file or folder
    weights: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> FeatureSettings:
        if self.backbone is None and self.weights is not None:
            raise ValueError(
                f"weights {self.weights} are for a backbone; give backbone: timm/NAME or "
                "vjepa2/SIZE too"
            )
        kind, _, name = (self.backbone or "").partition("/")
        if self.backbone is not None and (kind not in ("timm", "vjepa2") or not name):
            raise ValueError(f"backbone {self.backbone!r} is neither timm/NAME nor vjepa2/SIZE")
        if kind == "vjepa2" and self.weights is None:
            raise ValueError(
                f"backbone {self.backbone} needs weights, the path of the released file"
            )
        if kind == "timm" and self.weights not in (None, "published"):
            raise ValueError(
                f"weights {self.weights!r} of a timm backbone are 'published', or null for "
                "random ones"
            )
        return self
