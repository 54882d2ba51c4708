"""From the nll of every token to perplexities, intervals, comparisons and accuracies; no Ray, no run directory.

Imports: ``text``, ``model``, ``methods``, ``languages``.
Begin with ``perplexity.py``; ``metric_names.py`` spells the names of all metrics.
"""
