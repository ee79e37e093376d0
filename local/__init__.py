"""The local stack: template.yaml served on loopback, without Docker and without an account.

    python -m local up [--api-port N] [--aws-port N] [--parameter Name=Value …] [--json]

For tests that need AWS but no functions (moto in process, any boto3 session):

    from local.template import Template
    from local.aws.provision import provision

    template = Template.load("template.yaml", parameters={"RegistrationVisibilityTimeout": 5})
    with mock_aws():
        deployed = provision(template, boto3.Session(region_name="us-east-1"))
    deployed.outputs["ArtifactsBucketName"]           # the template's Outputs
    deployed.environment["InferFunction"]             # the function's environment variables
    deployed.template.functions["InferFunction"]      # handler, memory_mb, timeout_s, routes, …

    from local.aws.server import as_aws_notifies             # S3 → SQS events as AWS sends them, for in-process moto
    with mock_aws(), as_aws_notifies(): ...

For tests that need the whole stack (a child process; everything ends with the block):

    from local.client import start_stack

    with start_stack(parameters={"RegistrationVisibilityTimeout": 5}, state_dir=tmp_path) as stack:
        stack.outputs["ApiUrl"]                       # http://127.0.0.1:PORT/live
        stack.root_url                                # the same API without a stage, as a custom domain
        stack.endpoint_url                            # AWS (moto); stack.client("s3") is a boto3 client of it
        stack.client("lambda").invoke(FunctionName="RegisterFunction", Payload=b"{}")
        stack.environments("InferFunction")           # [{"pid": 123, "state": "idle", "number": 1}], to kill them
        stack.recycle("InferFunction")                # ends the idle ones: the next call is a cold start
        stack.log("InferFunction")                    # its log so far; stack.log_dir holds all of them

`Stack` in local/stack.py is the same inside an asyncio program: `async with Stack(Settings(…)) as stack`.
"""
