"""Lambda function that judges canaries: a task of their state machine."""
