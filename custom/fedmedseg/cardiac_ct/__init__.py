"""Cardiac CT: partly labelled hospitals train a CNN per task, which teach one transformer (Tölle et al. 2025)."""
