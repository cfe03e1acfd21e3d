"""Parts of the study of many classes; ``examples/class_scale.py`` is the command line."""
