"""Lambda function for hourly registry repair, blob clean-up and dead-letter operations."""
