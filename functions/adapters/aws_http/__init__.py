"""Small client of S3 and DynamoDB, which starts faster than boto3.

It keeps boto3, which would be most of a cold start, out of infer.
"""
