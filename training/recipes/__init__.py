"""The built-in recipes, one short file each."""
