"""FedATA: federated masked self-distillation with adaptive attention aggregation (Dai et al., Neurocomputing 2024)."""
