"""A trained network for other people's software: MONAI bundle, ONNX, TorchScript, each checked against the original."""
