"""Call a model with KServe's own client: kserve_client.py BASE_URL MODEL KEY.

Runs in a virtual environment of its own; prints one JSON line.
"""

import asyncio
import json
import sys

from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


async def main(base_url: str, model: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    tensor = InferInput(name="x", shape=[1, 3], datatype="FP32", data=[1.0, 2.0, 3.0])
    request = InferRequest(model_name=model, infer_inputs=[tensor])
    answer = await client.infer(base_url, request, model_name=model, headers=headers)
    alias = f"{model}/versions/prod"
    by_alias = await client.infer(base_url, request, model_name=alias, headers=headers)
    results = {
        "live": await client.is_server_live(base_url),
        "ready": await client.is_server_ready(base_url),
        "model_ready": await client.is_model_ready(base_url, model_name=model, headers=headers),
        "y": answer.outputs[0].data,
        "by_alias": by_alias.outputs[0].data,
    }
    await client.close()
    print(json.dumps(results))


asyncio.run(main(*sys.argv[1:]))
