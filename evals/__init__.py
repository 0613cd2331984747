"""Evaluations of frozen representations, imagined futures and plans."""
