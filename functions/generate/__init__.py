"""Lambda function that serves language models over OpenAI's API."""
