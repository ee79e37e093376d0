"""Lambda functions: one folder each, and the folders they share."""
