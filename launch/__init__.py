"""The same job here, under torchrun or on SLURM; installed as `jepa_wm.launch`."""
