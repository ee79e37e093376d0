"""Bundle of `make build`: which processor it is for, and where it may be deployed."""

from pathlib import Path

import pytest

from local.cloudformation import Document, TemplateError
from scripts.bundle import bind, foreign_libraries

# As `sam build` writes it
BUILT = """\
Parameters:
  Architecture:
    Type: String
    Default: x86_64
    AllowedValues:
    - x86_64
    - arm64
Resources: {}
"""


def elf(machine: int) -> bytes:
    """Return the head of a 64-bit shared library for a processor, by its ELF number."""
    return (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + (3).to_bytes(2, "little")
        + machine.to_bytes(2, "little")
    )


@pytest.mark.parametrize(("built", "other"), [("x86_64", "arm64"), ("arm64", "x86_64")])
def test_a_build_cannot_be_deployed_for_the_other_processor(
    tmp_path: Path, built: str, other: str
) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(bind(BUILT, built))

    assert Document.load(template).parameters == {"Architecture": built}  # without any override
    assert Document.load(template, {"Architecture": built}).parameters == {"Architecture": built}
    with pytest.raises(TemplateError, match=f"'{other}' is not one of {built}"):
        Document.load(template, {"Architecture": other})


def test_a_template_without_the_parameter_is_not_bound_silently() -> None:
    with pytest.raises(ValueError, match="does not declare the parameter Architecture"):
        bind("Resources: {}\n", "arm64")


def test_libraries_of_another_processor_are_noticed(tmp_path: Path) -> None:
    for name, machine in (("a.so", 62), ("deep/b.so.1.2", 183), ("c.so", 243)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(elf(machine))
    (tmp_path / "module.py").write_text("x = 1")
    (tmp_path / "empty.so").write_bytes(b"")

    assert foreign_libraries(tmp_path, "x86_64") == [tmp_path / "c.so", tmp_path / "deep/b.so.1.2"]
    assert foreign_libraries(tmp_path, "arm64") == [tmp_path / "a.so", tmp_path / "c.so"]
