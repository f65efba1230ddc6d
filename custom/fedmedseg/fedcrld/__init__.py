"""FedCRLD (Qi et al., MICCAI 2022): contrastive re-localization and history distillation over a shared encoder."""
