"""A lean signed client of S3 and DynamoDB for the path of a request, where boto3 would be most of a cold start"""
