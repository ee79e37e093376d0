"""Single torch thread for the tests of compression."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: threads that wait for each other make small networks slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
