"""Figures and tables of the studies whose sweeps are in jobs/studies: ``python -m benchmarks.studies RESULTS DOCS``."""
