"""Metrics, tables, figures and the run report."""
