"""Parts of the image classification study; ``examples/images.py`` is the command line."""
