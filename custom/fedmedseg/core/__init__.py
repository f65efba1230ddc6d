"""What every system stands on, and the only place that knows FLARE's client and server life cycle."""
