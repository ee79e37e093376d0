"""Built-in training recipes: data, model and settings, one file each."""
