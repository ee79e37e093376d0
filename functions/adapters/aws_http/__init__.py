"""Small signed client of S3 and DynamoDB.

It keeps boto3, which would be most of a cold start, out of infer.
"""
