"""``python -m handbook``: the pages of docs/ that are made from the code, and the pictures of the README."""
