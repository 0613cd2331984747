"""Facts that all rooms share; imports nothing else of ours."""
