"""Signed client of S3 and DynamoDB for infer, whose cold start boto3 would dominate."""
