"""Chat templates in a process of their own: what ends it ends nothing else."""

import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from functions.adapters.language import template_process
from functions.adapters.language.template_process import TemplateProcess
from functions.core.errors import InvalidRequest
from tests.language_models import CHATML

CHAT = [{"role": "user", "content": "hello 語"}]
DOUBLING = (
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% endfor %}"
)
# An object that holds itself ends the process; a nested list is written for ever; texts grow.
ENDS = "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}"
FOR_EVER = DOUBLING + "{{ ns.a | tojson | length }}"
GROWS = DOUBLING + "{{ ns.a }}"


@pytest.fixture
def template() -> Iterator[Callable[[str], TemplateProcess]]:
    processes = []

    def start(source: str) -> TemplateProcess:
        processes.append(TemplateProcess(source, {"bos_token": "<s>"}))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def test_a_process_renders_again_and_again(template: Callable[[str], TemplateProcess]) -> None:
    process = template("{{ bos_token }}" + CHATML)
    prompts = {process.render(CHAT) for _ in range(3)}
    assert prompts == {"<s><|im_start|>user\nhello 語<|im_end|>\n<|im_start|>assistant\n"}


def test_a_refusal_has_its_reason(template: Callable[[str], TemplateProcess]) -> None:
    process = template("{{ raise_exception('no system message') }}")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="no system message"):
            process.render(CHAT)


@pytest.mark.parametrize("hostile", [ENDS, FOR_EVER, GROWS])
def test_a_hostile_template_fails_its_request_alone(
    template: Callable[[str], TemplateProcess], hostile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "RENDER_S", 2.0)
    process = template("{% if messages[0].content == 'bad' %}" + hostile + "{% endif %}fine")

    with pytest.raises(InvalidRequest) as refused:
        process.render([{"role": "user", "content": "bad"}])

    assert refused.value.instance_code == "TEMPLATE_LIMIT"
    monkeypatch.undo()
    assert process.render(CHAT) == "fine"


def test_a_process_that_was_ended_between_requests_starts_again(
    template: Callable[[str], TemplateProcess],
) -> None:
    process = template("fine")
    process.render(CHAT)
    process._child.kill()
    assert process.render(CHAT) == "fine"


def test_the_thread_that_loads_a_template_starts_no_process() -> None:
    """Check that the end of a loading thread takes no process from the request that waited."""
    before = len(psutil.Process().children())
    made: list[TemplateProcess] = []
    thread = threading.Thread(target=lambda: made.append(TemplateProcess("{{ 1 + 1 }}", {})))
    thread.start()
    thread.join()
    template = made.pop()

    assert len(psutil.Process().children()) == before
    assert template.render([{"role": "user", "content": "Hi"}]) == "2"
    template.close()
