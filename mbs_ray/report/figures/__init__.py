"""One file per figure, named as its function; ``canvas.py`` makes and saves them."""
