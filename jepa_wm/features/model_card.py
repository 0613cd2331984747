"""The model card that goes with a shared encoder; huggingface_hub fills it in."""

from __future__ import annotations

CARD = """---
{{ card_data }}
---

# A frozen encoder of jepa_wm

A vision transformer that turns single frames into standardised patch tokens; trained by masked latent prediction,
without labels and without decoding a pixel, or taken over from the backbone that config.json names.

| | |
| --- | --- |
| frames | {{ image_size }} x {{ image_size }} px, three colours |
| tokens a frame | {{ tokens }} |
| numbers a token | {{ width }} |
| encoder | {{ encoder }} |
| parameters | {{ parameters }} |

```python
import torch
from jepa_wm.features.encoder import FrozenEncoder

encoder = FrozenEncoder.from_pretrained("PATH_OR_REPOSITORY")
tokens = encoder(torch.zeros(1, {{ image_size }}, {{ image_size }}, 3, dtype=torch.uint8))  # [1, {{ tokens }}, {{ width }}]
```

## What to know before using it

- Each position's mean over the training frames is removed and each number divided by its spread; both are stored with
  the weights.
- How well it sees is measured by `jepa-wm eval linear`, `attentive`, `knn` or `state` on data of your own, beside a
  random encoder and raw pixels. {{ measured }}
- It knows what it was trained on, and nothing else; who shares it says here what that was.
"""
