"""Searching: objectives over imagined latents, solvers, and the receding horizon; knows a
callable, nothing else."""
