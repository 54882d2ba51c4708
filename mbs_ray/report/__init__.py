"""What people look at, made from run directories: the report page, its tables, and figures.

Imports: ``evaluation``, ``run``, ``languages``. Needs neither Ray nor MLflow nor the model.
Begin with ``run_results.py``; ``figures/`` has one file per figure, named as its function.
"""
