"""Text shown when the local stack is up: addresses and commands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Screen:
    """Addresses of a running stack, shell exports and first commands."""

    api_url: str  # API with its stage
    root_url: str  # the same API without a stage
    endpoint_url: str  # URL of the stack's AWS services
    lambda_url: str
    log_dir: Path
    bucket: str
    table: str
    functions: Sequence[str]
    key: str = ""  # access key, where callers need one
    models: Sequence[str] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return addresses, `export` lines, first commands and the console's address."""
        parts = (self._addresses(), self._exports(), self._commands(), self._end(), self._console())
        return "\n\n".join(parts)

    def _addresses(self) -> str:
        rows = [
            ("API", self.api_url, "the stage included"),
            ("", self.root_url, "the same without a stage, as under a custom domain"),
            ("AWS", self.endpoint_url, "S3, SQS, DynamoDB, SageMaker; any credentials"),
            ("Lambda", self.lambda_url, f"boto3 invokes {', '.join(self.functions)}"),
            ("logs", str(self.log_dir), "one file for each function"),
            *((name, value, "") for name, value in self.outputs.items()),
        ]
        names = max(len(name) for name, _, _ in rows)
        values = max(len(value) for _, value, note in rows if note)
        lines = (
            f"  {name:<{names}}  {value:<{values}}  {note}".rstrip() for name, value, note in rows
        )
        return "\n".join(["The local stack is up.", *lines])

    def _exports(self) -> str:
        return "\n".join(
            [
                "Paste into a second terminal, in this folder:",
                f"  export API={self.api_url} BUCKET={self.bucket} TABLE={self.table}",
                "  export MAYFLY_URL=$API" + (f" MAYFLY_KEY={self.key}" if self.key else ""),
                f"  export AWS_ENDPOINT_URL_LAMBDA={self.lambda_url}",
                f"  export AWS_ENDPOINT_URL={self.endpoint_url} AWS_DEFAULT_REGION=us-east-1",
                "  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local",
                '  export PATH="$PWD/.venv/bin:$PATH"',
            ]
        )

    def _commands(self) -> str:
        curl = 'curl -s -H "x-api-key: $MAYFLY_KEY"' if self.key else "curl -s"
        describe = [f"  {curl} $API/v2/models/{model}" for model in self.models]
        keys = "  python -m mayfly keys create --function ManageFunction    # a key for predictions"
        return "\n".join(
            [
                "Then:",
                *describe,
                "  python -m mayfly upload model.onnx --model mine    # or drop it in the console",
                f"  {curl} -X POST $API/v2/repository/index    # every version, with its state",
                *([keys] if self.key else []),
            ]
        )

    def _end(self) -> str:
        return "Models are in temporary files: they are gone when this stops. Ctrl-C stops it."

    def _console(self) -> str:
        # last and each on a line of its own: what a newcomer opens and pastes
        key = [f"Key:     {self.key}"] if self.key else []
        return "\n".join([f"Console: {self.api_url}/console/", *key])
