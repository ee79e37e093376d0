"""Modules of the console are joined into one script."""

import pytest

from functions.manage.console.linker import LinkError, link


def linked(**modules: str) -> str:
    return link("main", lambda name: modules[name])


def test_imports_are_results_of_modules_that_come_first() -> None:
    script = linked(
        main='import { a as b, c } from "part";\nb(c);',
        part="export function a() {}\nexport const c = 1;\n",
    )

    assert script.index("function a()") < script.index("const { a: b, c: c } = module_0;")
    assert "return { a: a, c: c };" in script


def test_lists_and_defaults_are_exported() -> None:
    script = linked(
        main='import make from "made";\nimport { x } from "listed";\nmake(x);',
        made="export default function(s) { return s; }",
        listed="const y = 2;export{y as x};",
    )

    assert "const make = module_0.default;" in script
    assert "const exported = function(s)" in script
    assert "return { x: y };" in script


def test_comments_stay_behind_and_lines_keep_their_numbers() -> None:
    script = linked(main="// why\nconst a = 1; // https://b\n  // because\nconst c = a;")

    assert "\n\nconst a = 1; // https://b\n\nconst c = a;" in script


def test_a_module_is_joined_once() -> None:
    script = linked(
        main='import { a } from "left";\nimport { b } from "right";',
        left='import { c } from "shared";\nexport const a = c;',
        right='import { c } from "shared";\nexport const b = c;',
        shared="export const c = 'shared';",
    )

    assert script.count("'shared'") == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('import * as all from "part";', "is no form"),
        ('import "part";', "is no form"),
        ('export * from "part";', "is no form"),
        ('import { a } from "main";', "imports itself: main -> main"),
    ],
)
def test_other_forms_are_refused(text: str, cause: str) -> None:
    with pytest.raises(LinkError, match=cause):
        linked(main=text, part="export const a = 1;")
