"""What a person looks at: the HTML report, its plots and GIFs, and real frames found for imagined
latents."""
