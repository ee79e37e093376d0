"""Value classes as `dataclasses` makes them, in less time.

`dataclasses` imports `inspect` and compiles up to nine functions for each class, which was a tenth
of a cold start (docs/decisions/0037-records.md). Here classes share all functions but `__init__`,
and that is compiled when a class is first used. `dataclasses.replace`, `asdict` and `fields` take
records, and type checkers see dataclasses. A record has no base class.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

T = TypeVar("T")


class _Field:
    """Default and options of a record's field."""

    __slots__ = ("compare", "default", "factory", "shown")

    def __init__(
        self, default: Any, factory: Callable[[], Any] | None, compare: bool, shown: bool
    ) -> None:
        self.default = default
        self.factory = factory
        self.compare = compare
        self.shown = shown


_REQUIRED = object()  # default of a field without one
_PLAIN = _Field(_REQUIRED, None, compare=True, shown=True)


def field(
    *,
    default: Any = _REQUIRED,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    repr: bool = True,  # noqa: A002 (the name that type checkers know)
) -> Any:
    """Return the default and options of a record's field, as `dataclasses.field` does."""
    return _Field(default, default_factory, compare, repr)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make an immutable value class of the annotated fields."""
    return _make(cls, _IMMUTABLE)


@dataclass_transform(field_specifiers=(field,))
def mutable_record(cls: type[T]) -> type[T]:
    """Make a value class, whose fields may change, of the annotated fields."""
    return _make(cls, _MUTABLE)


if TYPE_CHECKING:
    from dataclasses import replace as replace
else:

    def replace(instance: T, /, **changes: Any) -> T:
        """Return a copy of a record with other values in some fields."""
        values = {name: getattr(instance, name) for name in instance.__slots__}
        return type(instance)(**(values | changes))


def _make(cls: type[T], methods: Mapping[str, Any]) -> type[T]:
    fields = {name: _field(cls, name) for name in cls.__annotations__}
    omitted = {*fields, "__dict__", "__weakref__"}
    own = {name: value for name, value in vars(cls).items() if name not in omitted}
    compared = attrgetter(*(name for name, options in fields.items() if options.compare))
    namespace = {
        **methods,
        **own,
        "__slots__": tuple(fields),
        "__match_args__": tuple(fields),
        "__dataclass_fields__": _DataclassFields(),
        "_compared": staticmethod(compared),
        "_shown": tuple(name for name, options in fields.items() if options.shown),
    }
    made: Any = type(cls.__name__, (), namespace)

    def compile_init(self: Any, *values: Any, **named: Any) -> None:
        made.__init__ = _init(made, fields, mutable=methods is _MUTABLE)
        made.__init__(self, *values, **named)

    made.__init__ = compile_init
    return made  # type: ignore[no-any-return]


def _field(cls: type, name: str) -> _Field:
    default = vars(cls).get(name, _PLAIN)
    if isinstance(default, _Field):
        return default
    if default.__class__.__hash__ is None:
        raise TypeError(f"{cls.__name__}.{name}: a mutable default needs field(default_factory=…)")
    return _Field(default, None, compare=True, shown=True)


def _init(cls: type, fields: Mapping[str, _Field], *, mutable: bool) -> Callable[..., None]:
    """Compile a record's `__init__` from the names of its fields."""
    scope: dict[str, Any] = {"_required": _REQUIRED}
    parameters, lines = [], []
    for name, options in fields.items():
        parameter, value = name, name
        if options.factory is not None:
            scope[f"_make_{name}"] = options.factory
            parameter = f"{name}=_required"
            value = f"_make_{name}() if {name} is _required else {name}"
        elif options.default is not _REQUIRED:
            scope[f"_default_{name}"] = options.default
            parameter = f"{name}=_default_{name}"
        scope[f"_set_{name}"] = vars(cls)[name].__set__
        parameters.append(parameter)
        lines.append(f" self.{name} = {value}" if mutable else f" _set_{name}(self, {value})")
    text = f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(lines)
    exec(text, scope)  # noqa: S102 (as dataclasses does: the text has names of fields alone)
    init: Callable[..., None] = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


class _DataclassFields:
    """Fields as `dataclasses` describes them, made on first use."""

    def __get__(self, instance: object, cls: Any) -> Any:
        from dataclasses import make_dataclass

        fields = [(name, object) for name in cls.__slots__]
        cls.__dataclass_fields__ = vars(make_dataclass(cls.__name__, fields))[
            "__dataclass_fields__"
        ]
        return cls.__dataclass_fields__


# --- methods that all records share


def _equal(self: Any, rival: Any) -> Any:
    if rival.__class__ is not self.__class__:
        return NotImplemented
    return self._compared(self) == self._compared(rival)


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _text(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)
    return f"{type(self).__qualname__}({fields})"


def _refuse_change(self: Any, name: str, *_: Any) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: use replace()")


_MUTABLE = {"__eq__": _equal, "__hash__": None, "__repr__": _text}
_IMMUTABLE = {
    **_MUTABLE,
    "__hash__": _hash,
    "__setattr__": _refuse_change,
    "__delattr__": _refuse_change,
}
