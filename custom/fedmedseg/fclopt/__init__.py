"""FCLOpt: negative-free federated learning of an encoder whose target networks are predicted (Wu et al. 2022)."""
