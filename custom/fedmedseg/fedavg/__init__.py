"""The plain baseline: FedAvg and the strategies that build on it, over the study's whole segmentation network."""
