"""Local stack: template.yaml served on loopback, without Docker or an AWS account.

    python -m local up [--api-port N] [--aws-port N] [--parameter Name=Value …] [--json]

A test that needs AWS but no functions, with moto in process:

    template = Template.load("template.yaml")                   # local.template
    with mock_aws(), as_aws_notifies():                         # local.aws.server
        deployed = provision(template, boto3.Session())         # local.aws.provision

A test that needs the whole stack, in a child process:

    with start_stack(state_dir=tmp_path) as stack:              # local.client
        stack.outputs["ApiUrl"]                                 # http://127.0.0.1:PORT/live
        stack.client("lambda").invoke(FunctionName="RegisterFunction", Payload=b"{}")
        stack.recycle("InferFunction")                          # the next call is a cold start
        stack.log("InferFunction")
"""
