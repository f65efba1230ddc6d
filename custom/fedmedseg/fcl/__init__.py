"""FCL: federated contrastive learning with feature exchange (Wu et al. 2021, 2022)."""
