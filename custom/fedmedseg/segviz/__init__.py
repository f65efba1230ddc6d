"""SegViz: sites that mark different organs train one trunk, each with a head of its own (Kanhere et al. 2023)."""
