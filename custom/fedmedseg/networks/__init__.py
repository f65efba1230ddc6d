"""Backbones and segmentation networks, built from MONAI, and the views on them that pretraining needs."""
