"""Supervised training, validation, test and inference: shared by every system."""
