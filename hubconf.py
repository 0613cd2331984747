"""Entry points of torch.hub: `torch.hub.load("OWNER/REPOSITORY", "frozen_encoder",
"PATH_OR_REPOSITORY")`."""

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pydantic",
    "h5py",
    "safetensors",
    "huggingface_hub",
    "av",
]


def frozen_encoder(source, **options):
    """The frozen encoder that `FrozenEncoder.save_pretrained` or `push_to_hub` shared, from a
    folder or a repository of the hub."""
    from jepa_wm.features.encoder import FrozenEncoder

    return FrozenEncoder.from_pretrained(source, **options)


def vjepa2_encoder(path, size="vit_large"):
    """The encoder of a released V-JEPA 2 file that lies here, for clips normalised by ImageNet's
    mean and spread."""
    from jepa_wm.features.weights import load_encoder

    return load_encoder(path, size)
