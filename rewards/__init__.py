"""Report text in, numbers out. Importing loads neither torch nor transformers."""
