"""The HTML report of a run: its page, plots, GIFs, and real frames shown for imagined latents."""
