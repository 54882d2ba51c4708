"""Kills at known moments of a sweep, on nodes that share only run directory, checkpoint and corpus."""
