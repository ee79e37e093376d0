"""Lambda function for the control plane: access keys."""
