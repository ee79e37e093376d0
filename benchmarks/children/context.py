"""Context object for handlers that are called without a runtime client."""

ACCOUNT, REGION = "123456789012", "us-east-1"


class Context:
    """Stand-in for the context object that Lambda passes to a handler."""

    aws_request_id = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    function_name = "InferFunction"
    function_version = "$LATEST"
    invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function_name}"
    memory_limit_in_mb = "3008"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        return 29_000
