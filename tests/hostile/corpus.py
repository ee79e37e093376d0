"""Hostile uploads in groups, each with the rejection codes that are allowed for it.

Numbers such as u03 or n51 mark files that crashed, stalled or bloated onnx 1.23.2 or
onnxruntime 1.31.1.
"""

import gzip
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.hostile import divisions
from tests.hostile.cases import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Case,
    block,
    case,
    constant,
    document,
    graph,
    listing,
    message,
    model,
    node,
    number,
    outside,
    packed,
    proto,
    raw_identity,
    raw_model,
    raw_node,
    raw_value,
    tar,
    value,
)
from tests.models import scale_model

GOOD = scale_model()
ARCHIVE, MANIFEST = "model.tar.gz", "manifest.json"
NOT_ONNX = ("NOT_ONNX", "TRUNCATED")
KILLED = ("SANDBOX_CRASHED", "SANDBOX_TIMEOUT", "SANDBOX_MEMORY")
NOT_RUN = (*KILLED, "NO_ANSWER", "NOT_LOADABLE", "SMOKE_RUN_FAILED", "TOO_LARGE_FOR_MEMORY")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"


class _Evil:
    """Pickle that prints when it runs."""

    def __reduce__(self) -> Any:
        return print, ("unpickled!",)


def zipped() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.onnx", GOOD)
    return out.getvalue()


def not_a_model() -> Iterator[Case]:
    yield case("empty", b"", "EMPTY_FILE")
    yield case("one zero", b"\0", *NOT_ONNX)
    yield case("zeros", bytes(100_000), *NOT_ONNX)
    yield case("ones", b"\xff" * 1000, *NOT_ONNX)
    yield case("text", b"I am a text about models. " * 50, *NOT_ONNX)
    yield case(
        "html of a login page", b"<!DOCTYPE html><html><body>Sign in</body></html>", *NOT_ONNX
    )
    yield case("json", b'{"model": [1, 2, 3]}', *NOT_ONNX)
    yield case(
        "xml of an S3 error",
        b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
        *NOT_ONNX,
    )
    yield case("pickle", pickle.dumps({"weights": [1.0] * 10}), *NOT_ONNX)
    yield case("pickle that runs code", pickle.dumps(_Evil()), *NOT_ONNX)
    yield case("zip, as torch.save writes it", zipped(), *NOT_ONNX)
    yield case("gzip of a model", gzip.compress(GOOD), *NOT_ONNX)
    yield case("pointer of git lfs", LFS, *NOT_ONNX)
    yield case(
        "flatbuffer of onnxruntime (.ort)", struct.pack("<I4s", 32, b"ORTM") + bytes(200), *NOT_ONNX
    )
    yield case(
        "flatbuffer of tensorflow lite", struct.pack("<I4s", 28, b"TFL3") + bytes(200), *NOT_ONNX
    )
    yield case("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100), *NOT_ONNX)
    yield case("safetensors", struct.pack("<Q", 2) + b"{}", *NOT_ONNX)
    yield case("elf", b"\x7fELF\x02\x01\x01" + bytes(100), *NOT_ONNX)
    yield case("png", b"\x89PNG\r\n\x1a\n" + bytes(100), *NOT_ONNX)
    yield case("utf-16 text", "model".encode("utf-16") * 20, *NOT_ONNX)
    yield case(
        "a tensor instead of a model", constant("w", [1, 2, 3]).SerializeToString(), *NOT_ONNX
    )
    yield case("a graph instead of a model", lambda: make_graph_only(), *NOT_ONNX)
    yield case("no graph", number(1, 10), "NOT_ONNX")
    yield case("no IR version", message(7), "NOT_ONNX")
    yield case("an empty graph", raw_model(), "NOT_LOADABLE")
    yield case("a weights file alone", np.random.default_rng(0).bytes(10_000), *NOT_ONNX)


def make_graph_only() -> bytes:
    return graph("g", [node("Identity", "x", "y")], [value("x")], [value("y")]).SerializeToString()


def truncated() -> Iterator[Case]:
    for share in (1, 10, 33, 50, 75, 90, 99):
        yield case(f"{share} % of a model", GOOD[: max(1, len(GOOD) * share // 100)], *NOT_ONNX)
    yield case("all but one byte", GOOD[:-1], *NOT_ONNX)
    yield case("a byte too much", GOOD + b"\x08", *NOT_ONNX)
    yield case("two models after each other", GOOD + GOOD, "NOT_ONNX")
    yield case("a length of 2 GiB", raw_model(extra=b"\x3a\xff\xff\xff\xff\x07"), *NOT_ONNX)
    yield case("a length of 2^63", raw_model(extra=b"\x3a" + b"\xff" * 8 + b"\x7f"), *NOT_ONNX)
    yield case("a number of eleven bytes", b"\x08" + b"\x80" * 10 + b"\x01" + GOOD, "NOT_ONNX")
    yield case("a group, which ended with protobuf 1", raw_model(extra=b"\x0b\x0c"), "NOT_ONNX")
    yield case("field number 0", raw_model(extra=b"\x02\x01a"), "NOT_ONNX")
    yield case("a tag of 40 bits", raw_model(extra=b"\xfa\xff\xff\xff\xff\x01\x00"), "NOT_ONNX")
    yield case("a name that is not UTF-8", raw_identity(y=b"\xff\xfe"), "NOT_ONNX")
    good = tar(("model.onnx", scale_model()))
    yield case("half of an archive", good[: len(good) // 2], "BAD_ARCHIVE", key=ARCHIVE)
    yield case("an archive without its checksum", good[:-8], "BAD_ARCHIVE", key=ARCHIVE)
    yield case("an archive with a wrong checksum", good[:-8] + bytes(8), "BAD_ARCHIVE", key=ARCHIVE)
    yield case(
        "weights that end early",
        tar(("m.onnx", outside("w.bin")), ("w.bin", bytes(11))),
        "WEIGHTS_TRUNCATED",
        key=ARCHIVE,
    )


def archives() -> Iterator[Case]:
    def bad(name: str, content: Any, *codes: str) -> Case:
        return case(name, content, *(codes or ("BAD_ARCHIVE",)), key=ARCHIVE)

    size = b"%011o\0" % len(GOOD)
    yield bad("empty file", b"")
    yield bad("no gzip", b"I am no archive")
    yield bad("gzip of nothing", gzip.compress(b""))
    yield bad("an empty archive", tar(), "NO_MODEL")
    yield bad(
        "no model in it", tar(("model.pt", b"\x80\x04"), ("code/inference.py", b"")), "NO_MODEL"
    )
    yield bad("only a pickle", tar(("model.pkl", pickle.dumps(_Evil()))), "NO_MODEL")
    yield bad("two models", tar(("a.onnx", GOOD), ("b.onnx", GOOD)), "NO_MODEL")
    yield bad("a model of text in it", tar(("model.onnx", b"text")), *NOT_ONNX)
    yield bad("an empty model in it", tar(("model.onnx", b"")), "EMPTY_FILE")
    yield bad("the same member twice", tar(("model.onnx", GOOD), ("model.onnx", GOOD)))
    yield bad(
        "the same member twice, once with ./", tar(("model.onnx", GOOD), ("./model.onnx", GOOD))
    )
    for kind, what in [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.FIFOTYPE, "fifo"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
        (b"D", "dump directory"),
        (b"Z", "unknown kind"),
    ]:
        yield bad(f"a {what}", packed(block(b"model.onnx", kind=kind, link=b"/etc/passwd")))
    for kind, what in [(b"1", "hard"), (b"2", "symbolic")]:
        yield bad(
            f"weights that are a {what} link",
            packed(
                block(b"w.bin", kind=kind, link=b"/proc/self/environ"),
                block(b"model.onnx", b"%011o\0" % len(outside("w.bin"))),
                outside("w.bin"),
            ),
        )
        yield bad(
            f"a manifest that is a {what} link",
            packed(
                block(b"manifest.json", kind=kind, link=b"/etc/passwd"),
                block(b"model.onnx", size),
                GOOD,
            ),
        )
    yield bad("a model above the archive", tar(("../model.onnx", GOOD)))
    yield bad(
        "weights above the archive",
        tar(("a/../m.onnx", outside("w.bin")), ("a/../w.bin", bytes(12))),
    )
    yield bad(
        "the weights twice",
        tar(("m.onnx", outside("w.bin")), ("w.bin", bytes(12)), ("./w.bin", bytes(12))),
    )
    yield bad("only the attributes of a model", tar(("._model.onnx", GOOD)), "NO_MODEL")
    yield bad("a folder named like a model", packed(block(b"model.onnx/", kind=b"5")), "NO_MODEL")
    yield bad("a name of 5,000 bytes in gnu", tar(("n" * 5000, GOOD), form=tarfile.GNU_FORMAT))
    yield bad("a name of 5,000 bytes in pax", tar(("n" * 5000, GOOD), form=tarfile.PAX_FORMAT))
    yield bad(
        "a name in pax for all members",
        packed(
            block(b"g", b"%011o\0" % 19, b"g"), b"19 path=model.onnx\n", block(b"a", size), GOOD
        ),
    )
    yield bad(
        "a size in pax",
        tar(("model.onnx", GOOD), form=tarfile.PAX_FORMAT, pax_headers={"size": "99999"}),
    )
    yield bad(
        "a sparse map in pax",
        tar(("model.onnx", GOOD), form=tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.map": "0,1"}),
    )
    yield bad(
        "a name in pax of another model",
        tar(
            ("a.txt", GOOD),
            ("model.onnx", GOOD),
            form=tarfile.PAX_FORMAT,
            pax_headers={"path": "model.onnx"},
        ),
    )
    yield bad(
        "a pax header of 300,000 digits (T37)",
        packed(block(b"x", b"%011o\0" % 300_000, b"x"), b"1" * 300_000),
    )
    yield bad(
        "a pax header of 200 MB (T35)",
        lambda: packed(block(b"x", b"%011o\0" % 200_000_000, b"x"), bytes(200_000_000)),
    )
    yield bad("a size of -512 (T32)", packed(block(b"model.onnx", b"-0000001000\0"), GOOD))
    yield bad(
        "a size of 8 in base 256",
        packed(block(b"model.onnx", b"\x80" + bytes(10) + b"\x08"), GOOD),
        *NOT_ONNX,
    )
    yield bad(
        "a size of 2^88 in base 256",
        packed(block(b"model.onnx", b"\x80" + b"\xff" * 11), GOOD),
        "TOO_LARGE",
    )
    yield bad("a size of -8 in base 256", packed(block(b"model.onnx", b"\xff" * 12), GOOD))
    yield bad("a size of 8 GiB in a kilobyte", packed(block(b"model.onnx", b"77777777777\0"), GOOD))
    yield bad("a size of nothing", packed(block(b"model.onnx", b" " * 12), GOOD))
    yield bad(
        "a wrong checksum", packed(bytes(bytearray(block(b"model.onnx", size)[:-1] + b"\1")), GOOD)
    )
    yield bad("a thousand files", tar(*((f"{n}.txt", b"") for n in range(1000))), "NO_MODEL")
    yield bad("100,000 empty gzip members", tar(("a", b"")) + gzip.compress(b"") * 100_000)
    yield bad(
        "zeros, 1:1000 (T27)",
        lambda: tar(("model.onnx", bytes(150 * 1024 * 1024)), level=9),
        *NOT_ONNX,
    )
    yield bad(
        "a damaged header after the model",
        packed(block(b"model.onnx", size), GOOD, b"\1" * 512, block(b"w.bin")),
    )
    yield bad(
        "no end of the archive",
        gzip.compress(block(b"model.onnx", size) + GOOD + bytes(-len(GOOD) % 512)),
    )
    yield bad("a second gzip member", tar(("model.onnx", GOOD)) + tar(("model.onnx", GOOD)))
    yield bad("bytes after the end", tar(("model.onnx", GOOD)) + b"#!/bin/sh\n")
    yield bad(
        "members after the end",
        gzip.compress(gzip.decompress(tar(("model.onnx", GOOD))) + block(b"evil.onnx")),
    )
    yield bad("a zip with the name of an archive", zipped())
    yield bad(
        "a manifest of 9 MB beside the model",
        lambda: tar(("model.onnx", GOOD), (MANIFEST, b" " * 9_000_000)),
        "MANIFEST_TOO_LARGE",
    )


def external_data() -> Iterator[Case]:
    for location in ("../w.bin", "/etc/passwd", "model.onnx", "other.onnx", "manifest.json"):
        yield case(f"a bare model with weights in {location}", outside(location), "BAD_FILE_NAME")
    for location in ("w.bin", "*/_ORT_MEM_ADDR_/*", "a/b.data"):
        yield Case(
            f"a bare model whose weights beside it, {location}, are too short",
            lambda location=location: outside(location),
            frozenset({"WEIGHTS_TRUNCATED"}),
            siblings={location: bytes(11)},
        )
    for location in (
        "../w.bin",
        "/etc/passwd",
        "/proc/self/environ",
        "a/../../w.bin",
        ".",
        "..",
        "./",
        "model.onnx",
        "./model.onnx",
        "manifest.json",
        "a/../manifest.json",
        "w\u202ebin.exe",
        "w\n.bin",
    ):
        yield case(
            f"an archive with weights in {location[:30]!a}",
            tar(("model.onnx", outside(location)), ("w.bin", bytes(12))),
            "BAD_FILE_NAME",
            "BAD_CONSTANT",
            key=ARCHIVE,
        )
    for location in (
        "sub/w.bin",
        "C:\\w.bin",
        "*/_ORT_MEM_ADDR_/*",
        "file:///etc/passwd",
        "https://example.com/w.bin",
        "w.bin ",
        "~/.aws/credentials",
        ".hidden",
        "w" * 300,
        "ẃ.bin",
    ):
        yield case(
            f"an archive with weights in {location[:30]!a}, which is not there",
            tar(("model.onnx", outside(location)), ("w.bin", bytes(12))),
            "WEIGHTS_MISSING",
            key=ARCHIVE,
        )
    with_nul = outside("w.bin").replace(b"\x12\x05w.bin", b"\x12\x05w\0bin")
    yield case(
        "a location with a NUL in it",
        tar(("model.onnx", with_nul), ("w", bytes(12))),
        "BAD_FILE_NAME",
        key=ARCHIVE,
    )
    yield case(
        "weights that are not there",
        tar(("model.onnx", outside("w.bin"))),
        "WEIGHTS_MISSING",
        key=ARCHIVE,
    )
    yield case(
        "weights in another folder",
        tar(("a/model.onnx", outside("w.bin")), ("w.bin", bytes(12))),
        "WEIGHTS_MISSING",
        key=ARCHIVE,
    )
    for name, entries in [
        ("an offset beyond the file", {"offset": "4096"}),
        ("an offset of 2^49", {"offset": str(2**49)}),
    ]:
        yield case(
            name,
            tar(("model.onnx", outside("w.bin", **entries)), ("w.bin", bytes(12))),
            "WEIGHTS_TRUNCATED",
            key=ARCHIVE,
        )
    for name, entries in [
        ("a negative offset", {"offset": "-1"}),
        ("an offset of text", {"offset": "0x10"}),
        ("a length of 1", {"length": "1"}),
        ("a length of 2^62", {"length": str(2**62)}),
        ("an unknown key", {"__class__": "os"}),
        ("no location", {"location": ""}),
    ]:
        yield case(
            name,
            tar(("model.onnx", outside("w.bin", **entries)), ("w.bin", bytes(12))),
            "BAD_CONSTANT",
            key=ARCHIVE,
        )
    yield case("strings in another file", proto_outside_strings, "BAD_CONSTANT")
    listed = [("parts/m.onnx", outside("../w.bin")), ("parts/w.bin", bytes(12))]
    yield case(
        "listed files with a location above",
        document(listing(*listed)),
        "BAD_FILE_NAME",
        key=MANIFEST,
        **{path.replace("/", "__"): content for path, content in listed},
    )


def proto_outside_strings() -> bytes:
    def change(good: Any) -> None:
        tensor = good.graph.initializer.add(name="s", data_type=TensorProto.STRING, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")

    return proto(change)


def graphs() -> Iterator[Case]:
    yield case(
        "local functions",
        lambda: proto(lambda m: m.functions.add(name="f", domain="d")),
        "LOCAL_FUNCTIONS",
    )
    yield case(
        "a local function called Relu",
        lambda: proto(lambda m: m.functions.add(name="Relu")),
        "LOCAL_FUNCTIONS",
    )
    yield case("u03, billion laughs of functions", billion_laughs, "LOCAL_FUNCTIONS")
    yield case("u04, 5,000 functions that call each other", deep_functions, "LOCAL_FUNCTIONS")
    yield case(
        "a sparse initializer",
        lambda: proto(lambda m: m.graph.sparse_initializer.add(dims=[2**40])),
        "SPARSE_CONSTANT",
    )
    yield case("a sparse attribute", sparse_attribute, "SPARSE_CONSTANT")
    for domain, op in [
        ("evil", "Op"),
        ("com.microsoft", "EPContext"),
        ("com.microsoft", "BeamSearch"),
        ("com.microsoft", "CropAndResize"),
        ("com.microsoft", "Inverse"),
        ("com.microsoft", "MoE"),
        ("com.microsoft", "NGramRepeatBlock"),
        ("com.microsoft", "QMoE"),
        ("com.microsoft.nchwc", "Conv"),
        ("ai.onnx.training", "Adam"),
        ("org.pytorch.aten", "ATen"),
    ]:
        yield case(
            f"operator {op} of {domain}",
            model([node(op, "x", "y", domain=domain)], [value("x")], [value("y")]),
            "FOREIGN_OPERATOR",
        )
    for name, opset in [("0", 0), ("27", 27), ("9999", 9999)]:
        yield case(f"opset {name}", raw_identity(opset=opset), "UNSUPPORTED_OPSET")
    for ir in (14, 99):
        yield case(f"IR version {ir}", raw_identity(ir=ir), "UNSUPPORTED_OPSET")
    yield case(
        "a cycle",
        model(
            [node("Add", "x b", "a"), node("Add", "x a", "b"), node("Add", "a b", "y")],
            [value("x")],
            [value("y")],
        ),
        "NOT_LOADABLE",
    )
    yield case(
        "one name written twice",
        model([node("Relu", "x", "y"), node("Abs", "x", "y")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "an input that nothing gives",
        model([node("Add", "x nowhere", "y")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "an output that nothing gives",
        model([node("Relu", "x", "z")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "an unknown operator",
        model([node("Magic", "x", "y")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "an operator without its inputs",
        model([node("Add", "x", "y")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "an attribute of the wrong type",
        model([node("Softmax", "x", "y", axis="one")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )
    yield case(
        "types that disagree",
        model([node("Relu", "x", "y")], [value("x")], [value("y", INT64)]),
        "NOT_LOADABLE",
    )
    yield case(
        "a type that does not exist",
        raw_model(
            raw_node(b"Relu", [b"x"], [b"y"]),
            message(11, raw_value(b"x", 99)),
            message(12, raw_value(b"y", 99)),
        ),
        "NOT_LOADABLE",
        "UNSUPPORTED_TYPE",
    )
    yield case(
        "two outputs of one name", raw_identity(message(12, raw_value(b"y"))), "DUPLICATE_NAME"
    )
    yield case(
        "two inputs of one name", raw_identity(message(11, raw_value(b"x"))), "DUPLICATE_NAME"
    )
    yield case(
        "two initializers of one name",
        model(
            [node("Add", "x w", "y")],
            [value("x")],
            [value("y")],
            constant("w", 1),
            constant("w", 2),
        ),
        "DUPLICATE_NAME",
    )
    yield case(
        "two manifests in the metadata",
        raw_identity(extra=message(14, message(1, b"mayfly.manifest"), message(2, b"{}")) * 2),
        "DUPLICATE_NAME",
    )
    yield case("two graphs", raw_identity() + message(7), "NOT_ONNX")
    yield case(
        "an input of 2^40 x 2^40",
        model(
            [node("Relu", "x", "y")], [value("x", shape=[2**40, 2**40])], [value("y", shape=None)]
        ),
        "BAD_SHAPE",
    )
    yield case(
        "an input of -2",
        model([node("Relu", "x", "y")], [value("x", shape=[-2])], [value("y", shape=None)]),
        "BAD_SHAPE",
    )
    yield case(
        "an input of 17 dimensions",
        model([node("Relu", "x", "y")], [value("x", shape=[1] * 17)], [value("y", shape=None)]),
        "BAD_SHAPE",
    )
    yield case(
        "an input of no known rank",
        model([node("Relu", "x", "y")], [value("x", shape=None)], [value("y", shape=None)]),
        "UNKNOWN_RANK",
    )
    yield case(
        "a sequence as output",
        model(
            [node("SequenceConstruct", "x", "y")],
            [value("x")],
            [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
        ),
        "UNSUPPORTED_TYPE",
    )
    yield case(
        "an input of complex numbers",
        model(
            [node("Identity", "x", "y")],
            [value("x", TensorProto.COMPLEX64)],
            [value("y", TensorProto.COMPLEX64)],
        ),
        "UNSUPPORTED_TYPE",
        "NOT_LOADABLE",
    )
    for name, change in {
        "fewer bytes than its dimensions say": {"raw_data": bytes(4)},
        "more bytes than its dimensions say": {"raw_data": bytes(400)},
        "no bytes": {"raw_data": b""},
        "dimensions that overflow": {"dims": [2**32, 2**32]},
        "a negative dimension": {"dims": [-3]},
        "a claim of a terabyte": {"dims": [2**19, 2**19]},
        "17 dimensions": {"dims": [1] * 17},
        "an unknown type": {"data_type": 77},
        "no type": {"data_type": 0},
    }.items():
        codes = ("BAD_CONSTANT", "TOO_COMPLEX")
        yield case(
            f"a constant with {name}",
            lambda change=change: proto(lambda m: changed(m, change)),
            *codes,
        )
    yield case(
        "n03, int64 Div by a request's value", division("Div", INT64), "UNSAFE_INTEGER_DIVISION"
    )
    yield case(
        "n04, int32 Div by a request's value", division("Div", INT32), "UNSAFE_INTEGER_DIVISION"
    )
    yield case(
        "n06, int64 Mod by a request's value", division("Mod", INT64), "UNSAFE_INTEGER_DIVISION"
    )
    yield case(
        "n03c, INT_MIN / -1 of constants", constant_division("Div"), "UNSAFE_INTEGER_DIVISION"
    )
    yield case(
        "n06c, INT_MIN % -1 of constants", constant_division("Mod"), "UNSAFE_INTEGER_DIVISION"
    )
    yield case(
        "Div by a constant that a request replaces",
        replaceable_division(),
        "UNSAFE_INTEGER_DIVISION",
    )
    yield case("Div after Cast to int64", cast_division(), "UNSAFE_INTEGER_DIVISION")
    yield case("Div in a branch of If", branch_division(), "UNSAFE_INTEGER_DIVISION")
    yield case(
        "Div by a 0 among the constants",
        model(
            [node("Div", "x w", "y")],
            [value("x", INT64)],
            [value("y", INT64)],
            constant("w", [2, 0, 3], np.int64),
        ),
        "UNSAFE_INTEGER_DIVISION",
    )


def billion_laughs() -> bytes:
    def change(good: Any) -> None:
        for level in range(30):
            called = f"f{level + 1}" if level < 29 else "Relu"
            domain = "d" if level < 29 else ""
            calls = [
                helper.make_node(called, ["a"], ["t"], domain=domain),
                helper.make_node(called, ["t"], ["b"], domain=domain),
            ]
            good.functions.add().CopyFrom(
                helper.make_function(
                    "d",
                    f"f{level}",
                    ["a"],
                    ["b"],
                    calls,
                    [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)],
                )
            )

    return proto(change)


def deep_functions() -> bytes:
    def change(good: Any) -> None:
        for level in range(5000):
            call = helper.make_node(f"f{level + 1}", ["a"], ["b"], domain="d")
            good.functions.add().CopyFrom(
                helper.make_function(
                    "d", f"f{level}", ["a"], ["b"], [call], [helper.make_opsetid("d", 1)]
                )
            )

    return proto(change)


def sparse_attribute() -> bytes:
    values, indices = constant("v", [1.0]), constant("i", [0], np.int64)
    sparse = helper.make_sparse_tensor(values, indices, [10])
    return model(
        [helper.make_node("Constant", [], ["y"], sparse_value=sparse)],
        [value("x")],
        [value("y", shape=[10])],
    )


def changed(good: Any, change: dict[str, Any]) -> None:
    [tensor] = good.graph.initializer
    for name, content in change.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(content)
        else:
            setattr(tensor, name, content)


def division(op: str, kind: int) -> bytes:
    return model(
        [node(op, "a b", "y")],
        [value("a", kind, [1]), value("b", kind, [1])],
        [value("y", kind, [1])],
    )


def constant_division(op: str) -> bytes:
    least = constant("a", [-(2**63)], np.int64)
    return model(
        [node(op, "a b", "c"), node("Add", "c x", "y")],
        [value("x", INT64, [1])],
        [value("y", INT64, [1])],
        least,
        constant("b", [-1], np.int64),
    )


def replaceable_division() -> bytes:
    return model(
        [node("Div", "x w", "y")],
        [value("x", INT64, [1]), value("w", INT64, [1])],
        [value("y", INT64, [1])],
        constant("w", [2], np.int64),
    )


def cast_division() -> bytes:
    nodes = [
        node("Cast", "x", "i", to=INT64),
        node("Neg", "i", "n"),
        node("Div", "i n", "d"),
        node("Cast", "d", "y", to=FLOAT),
    ]
    return model(nodes, [value("x")], [value("y")])


def branch_division() -> bytes:
    branches = {
        name: graph(name, [node(op, "a a", f"r{name}")], [], [value(f"r{name}", INT64, [1])])
        for name, op in (("then", "Div"), ("else", "Add"))
    }
    chosen = node("If", "c", "y", then_branch=branches["then"], else_branch=branches["else"])
    return model([chosen], [value("a", INT64, [1]), value("c", BOOL, [])], [value("y", INT64, [1])])


def chain(count: int) -> bytes:
    nodes = [node("Relu", f"x{n}", f"x{n + 1}") for n in range(count)]
    return model(nodes, [value("x0")], [value(f"x{count}")])


def bombs() -> Iterator[Case]:
    yield case(
        "g18, 200,000 nodes",
        lambda: raw_model(
            *(raw_node(b"Relu", [b"x"], [b"y%d" % n]) for n in range(200_000)),
            message(11, raw_value(b"x")),
            message(12, raw_value(b"y0")),
        ),
        "TOO_COMPLEX",
    )
    yield case(
        "g24, 20,000 inputs",
        lambda: raw_model(
            *(message(11, raw_value(b"x%d" % n)) for n in range(20_000)),
            raw_node(b"Relu", [b"x0"], [b"y"]),
            message(12, raw_value(b"y")),
        ),
        "TOO_COMPLEX",
    )
    yield case(
        "g25, 20,000 outputs",
        lambda: raw_model(
            *(message(12, raw_value(b"y%d" % n)) for n in range(20_000)),
            *(raw_node(b"Relu", [b"x"], [b"y%d" % n]) for n in range(20_000)),
            message(11, raw_value(b"x")),
        ),
        "TOO_COMPLEX",
    )
    yield case(
        "a node of 100,000 inputs",
        lambda: raw_model(
            raw_node(b"Sum", [b"x"] * 100_000, [b"y"]),
            message(11, raw_value(b"x")),
            message(12, raw_value(b"y")),
        ),
        "TOO_COMPLEX",
    )
    yield case("30 graphs in each other", lambda: nested(30), "TOO_COMPLEX")
    yield case("5,000 graphs in each other", lambda: raw_nested(5000), "TOO_COMPLEX", "TRUNCATED")
    yield case(
        "30 million empty fields",
        lambda: raw_identity(extra=b"\xf8\x07\x00" * 10_000_000),
        "TOO_COMPLEX",
        *KILLED,
    )
    yield case(
        "100,000 metadata entries",
        lambda: raw_identity(
            extra=b"".join(message(14, message(1, b"%d" % at)) for at in range(100_000))
        ),
        "TOO_COMPLEX",
    )
    yield case(
        "20 MB of metadata",
        lambda: raw_identity(extra=message(14, message(1, b"k"), message(2, b"v" * 20_000_000))),
        "TOO_COMPLEX",
    )
    yield case(
        "60,000 initializers",
        lambda: raw_identity(
            *(
                message(5, number(1, 1), number(2, 1), message(8, b"w%d" % n), message(9, bytes(4)))
                for n in range(60_000)
            )
        ),
        "TOO_COMPLEX",
    )
    yield case("a constant of 600 MB", huge_constant, "BAD_CONSTANT")
    yield case("m12, a tree 20,000 deep", lambda: tree(20_000), *KILLED)
    yield case("n51, Range(5e7) and Reshape", folded("Range"), *NOT_RUN)
    yield case("n52, ConstantOfShape(5e7) and Reshape", folded("ConstantOfShape"), *NOT_RUN)
    yield case("b02, ConstantOfShape of 8 GiB", constant_of_shape(2**31), *NOT_RUN)
    yield case("b06, Expand to 8 GiB", expand(2**31), *NOT_RUN)
    yield case("b26, 64 constants of 100 MB", many_constants(), *NOT_RUN)
    yield case("b25, 60 products of 3000 x 3000", products(), *NOT_RUN)
    yield case("b20, an endless Loop", loop("endless"), *NOT_RUN)
    yield case("b22, a Loop that gathers for ever", loop("gathers"), *NOT_RUN)
    yield case("b23, an endless Loop of constants", loop("constant"), *NOT_RUN)
    yield case("b21, a Loop that doubles", loop("doubles"), *NOT_RUN)
    yield case("n31, TfIdf with index 1e9", tfidf(10**9), *NOT_RUN)
    yield case("m29, FeatureVectorizer of 1e9", feature_vectorizer(10**9), *NOT_RUN)
    yield case("Range to 1e12", range_to(1e12), *NOT_RUN)
    yield case("OneHot of 2^33 classes", one_hot(2**33), *NOT_RUN)
    yield case("Pad by 2^33", padded(2**33), *NOT_RUN)


def nested(depth: int) -> bytes:
    inner = graph("g0", [node("Identity", "x", "r0")], [], [value("r0")])
    for level in range(1, depth):
        chosen = (
            node("If", "c", f"r{level}", then_branch=inner, else_branch=inner)
            if level < 3
            else node("If", "c", f"r{level}", then_branch=inner)
        )
        inner = graph(f"g{level}", [chosen], [], [value(f"r{level}")])
    return model(
        [node("If", "c", "y", then_branch=inner, else_branch=inner)],
        [value("x"), value("c", BOOL, [])],
        [value("y")],
    )


def raw_nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = message(1, message(5, message(6, inner)))
    return raw_model(inner)


def huge_constant() -> bytes:
    size = 150_000_001
    return raw_model(message(5, number(1, size), number(2, FLOAT), message(8, b"w")))


def tree(depth: int) -> bytes:
    count = 2 * depth + 1
    inner = list(range(depth))
    true = [n + 1 for n in inner]
    false = [depth + 1 + n for n in inner]
    leaves = count - depth
    return model(
        [
            node(
                "TreeEnsembleRegressor",
                "x",
                "y",
                domain="ai.onnx.ml",
                n_targets=1,
                nodes_treeids=[0] * count,
                nodes_nodeids=list(range(count)),
                nodes_featureids=[0] * count,
                nodes_values=[0.5] * count,
                nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * leaves,
                nodes_truenodeids=true + [0] * leaves,
                nodes_falsenodeids=false + [0] * leaves,
                target_treeids=[0] * leaves,
                target_nodeids=list(range(depth, count)),
                target_ids=[0] * leaves,
                target_weights=[1.0] * leaves,
            )
        ],
        [value("x")],
        [value("y", shape=["batch", 1])],
        opsets={"ai.onnx.ml": 3},
    )


def folded(op: str) -> bytes:
    """Serialise a model with a constant of 50,000,000 elements as a shape.

    The runtime makes a protobuf message of each element.
    """
    if op == "Range":
        nodes = [node("Range", "zero many one", "s")]
        constants = [
            constant("zero", 0, np.int64),
            constant("many", 50_000_000, np.int64),
            constant("one", 1, np.int64),
        ]
    else:
        nodes = [node("ConstantOfShape", "many", "s", value=constant("v", [1], np.int64))]
        constants = [constant("many", [50_000_000], np.int64)]
    return model(
        [*nodes, node("Reshape", "x s", "y")],
        [value("x", shape=[1])],
        [value("y", shape=None)],
        *constants,
    )


def constant_of_shape(size: int) -> bytes:
    nodes = [
        node("ConstantOfShape", "s", "z"),
        node("ReduceSum", "z", "r", keepdims=0),
        node("Add", "x r", "y"),
    ]
    return model(nodes, [value("x")], [value("y")], constant("s", [size], np.int64))


def expand(size: int) -> bytes:
    nodes = [
        node("ReduceSum", "x", "o", keepdims=1),
        node("Expand", "o s", "z"),
        node("ReduceSum", "z", "y", keepdims=0),
    ]
    return model(nodes, [value("x")], [value("y", shape=[])], constant("s", [size, 1], np.int64))


def many_constants() -> bytes:
    nodes: list[Any] = [node("ConstantOfShape", "s", f"c{n}") for n in range(64)]
    nodes += [node("Add", f"c{n} x", f"a{n}") for n in range(64)]
    nodes.append(node("Concat", " ".join(f"a{n}" for n in range(64)), "y", axis=0))
    return model(
        nodes,
        [value("x", shape=[1])],
        [value("y", shape=["n"])],
        constant("s", [25_000_000], np.int64),
    )


def products() -> bytes:
    nodes: list[Any] = [node("ConstantOfShape", "s", "c0", value=constant("v", [0.001]))]
    nodes += [node("MatMul", f"c{n} c{n}", f"c{n + 1}") for n in range(60)]
    nodes.append(node("Add", "c60 x", "y"))
    return model(
        nodes,
        [value("x", shape=[1])],
        [value("y", shape=[3000, 3000])],
        constant("s", [3000, 3000], np.int64),
    )


def loop(kind: str) -> bytes:
    """Serialise a Loop without a bound whose condition stays true."""
    body_nodes = [node("Identity", "go", "on")]
    carried = {"endless": ["v"], "gathers": ["v"], "constant": [], "doubles": ["v"]}[kind]
    outputs = [value("on", BOOL, [])]
    if kind == "endless":
        body_nodes.append(node("Add", "v v", "w"))
        outputs.append(value("w", shape=None))
    elif kind == "doubles":
        body_nodes.append(node("Concat", "v v", "w", axis=0))
        outputs.append(value("w", shape=None))
    elif kind == "gathers":
        body_nodes += [node("Add", "v v", "w"), node("Identity", "v", "kept")]
        outputs += [value("w", shape=None), value("kept", shape=None)]
    else:
        body_nodes.append(node("Identity", "outer", "kept"))
        outputs.append(value("kept", shape=None))
    inputs = [
        value("i", INT64, []),
        value("go", BOOL, []),
        *(value(name, shape=None) for name in carried),
    ]
    body = graph("body", body_nodes, inputs, outputs)
    results = {"endless": "y", "doubles": "y", "gathers": "z y", "constant": "y"}[kind]
    started = helper.make_node(
        "Loop", ["", "true", *(["x"] if carried else [])], results.split(), body=body
    )
    nodes = [node("Identity", "x", "outer"), started]
    return model(
        nodes, [value("x", shape=["n"])], [value("y", shape=None)], constant("true", True, np.bool_)
    )


def tfidf(index: int) -> bytes:
    return model(
        [
            node(
                "TfIdfVectorizer",
                "x",
                "y",
                mode="TF",
                min_gram_length=1,
                max_gram_length=1,
                max_skip_count=0,
                ngram_counts=[0],
                ngram_indexes=[index],
                pool_int64s=[1],
            )
        ],
        [value("x", INT64, [3])],
        [value("y", shape=None)],
    )


def feature_vectorizer(size: int) -> bytes:
    return model(
        [node("FeatureVectorizer", "x", "y", domain="ai.onnx.ml", inputdimensions=[size])],
        [value("x", shape=["batch", 3])],
        [value("y", shape=None)],
    )


def padded(by: int) -> bytes:
    padding = constant("p", [by, 0], np.int64)
    return model(
        [node("Pad", "x p", "y")], [value("x", shape=[3])], [value("y", shape=None)], padding
    )


def range_to(limit: float) -> bytes:
    nodes = [node("Range", "zero many one", "r"), node("Add", "r x", "y")]
    constants = [constant("zero", 0.0), constant("many", limit), constant("one", 1.0)]
    return model(nodes, [value("x", shape=[1])], [value("y", shape=None)], *constants)


def one_hot(depth: int) -> bytes:
    return model(
        [node("OneHot", "x d v", "y")],
        [value("x", INT64, [3])],
        [value("y", shape=None)],
        constant("d", [depth], np.int64),
        constant("v", [0, 1]),
    )


def manifests() -> Iterator[Case]:
    def inside(name: str, content: Any, *codes: str) -> Case:
        return case(name, scale_model(manifest=content), *codes)

    yield inside("schema 2", {"schema": 2}, "BAD_MANIFEST")
    yield inside("no schema", {}, "BAD_MANIFEST")
    yield inside("schema as text", {"schema": "1"}, "BAD_MANIFEST")
    yield inside("a list", [], "BAD_MANIFEST")
    yield inside(
        "an output that is not there",
        {"schema": 1, "outputs": [{"name": "z"}]},
        "MANIFEST_MISMATCH",
    )
    yield inside(
        "an input of another type",
        {"schema": 1, "inputs": [{"name": "x", "datatype": "INT8"}]},
        "MANIFEST_MISMATCH",
    )
    yield inside(
        "an output of another shape",
        {"schema": 1, "outputs": [{"name": "y", "shape": [-1, 10]}]},
        "MANIFEST_MISMATCH",
    )
    yield inside(
        "an output of another rank",
        {"schema": 1, "outputs": [{"name": "y", "shape": [3]}]},
        "MANIFEST_MISMATCH",
    )
    yield inside(
        "labels that are too few",
        {"schema": 1, "outputs": [{"name": "y", "labels": ["a"]}]},
        "MANIFEST_MISMATCH",
    )
    yield inside("metrics as a list", {"schema": 1, "metrics": []}, "BAD_MANIFEST")
    yield inside(
        "an interval of one end",
        {"schema": 1, "evaluation": {"intervals": {"accuracy": [0.9]}}},
        "BAD_MANIFEST",
    )
    yield inside("an evaluation as a number", {"schema": 1, "evaluation": 0.9}, "BAD_MANIFEST")
    yield inside("a tolerance below zero", {"schema": 1, "tolerance": {"rtol": -1}}, "BAD_MANIFEST")
    yield inside("an unknown variant", {"schema": 1, "variants": ["int1"]}, "BAD_MANIFEST")
    yield inside(
        "65 samples",
        {"schema": 1, "samples": [{"request": {}, "response": {}}] * 65},
        "BAD_MANIFEST",
    )
    yield inside(
        "a sample without an answer", {"schema": 1, "samples": [{"request": {}}]}, "BAD_MANIFEST"
    )
    yield inside(
        "a sample that is no request",
        {"schema": 1, "samples": [{"request": {}, "response": {}}]},
        "BAD_SAMPLE",
    )
    right = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    wrong = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 7]}]}
    yield inside(
        "a sample with a wrong answer",
        {"schema": 1, "samples": [{"request": right, "response": wrong}]},
        "SAMPLE_MISMATCH",
    )
    yield inside(
        "400,000 bytes of labels and texts",
        {"schema": 1, "data": {"notes": ["n" * 1000] * 400}},
        "RECORD_TOO_LARGE",
    )
    for name, content in [
        ("no JSON", b"{"),
        ("JSON nested 100,000 deep", b"[" * 100_000),
        ("UTF-16", "{}".encode("utf-16")),
        ("a number of 5,000 digits", b'{"schema": ' + b"1" * 5000 + b"}"),
        ("nothing", b""),
    ]:
        yield case(f"manifest.json: {name}", content, "BAD_MANIFEST", key=MANIFEST)
        yield case(
            f"in an archive: {name}",
            tar(("model.onnx", GOOD), (MANIFEST, content)),
            "BAD_MANIFEST",
            key=ARCHIVE,
        )
    yield case("no files", document({"schema": 1}), "NO_MODEL", key=MANIFEST)
    yield case(
        "no model among the files",
        document(listing(("parts/w.bin", b"w"))),
        "NO_MODEL",
        key=MANIFEST,
    )
    yield case(
        "two models",
        document(listing(("a/m.onnx", GOOD), ("b/n.onnx", GOOD))),
        "NO_MODEL",
        key=MANIFEST,
    )
    yield case(
        "files that are not there",
        document(listing(("parts/m.onnx", GOOD))),
        "FILE_MISSING",
        key=MANIFEST,
    )
    for name, change, code in [
        ("another digest", {"sha256": "0" * 64}, "DIGEST_MISMATCH"),
        ("a smaller size", {"size": 5}, "SIZE_MISMATCH"),
        ("a size of 2^62", {"size": 2**62}, "TOO_LARGE"),
        ("a size below zero", {"size": -1}, "BAD_MANIFEST"),
        ("a digest of text", {"sha256": "sha"}, "BAD_MANIFEST"),
        ("an empty path", {"path": ""}, "BAD_MANIFEST"),
    ]:
        listed = listing(("parts/m.onnx", GOOD))
        listed["files"][0] |= change
        yield case(
            f"{name} than the file",
            document(listed),
            code,
            key=MANIFEST,
            parts__m_onnx=b"",
            **{"parts__m.onnx": GOOD},
        )
    for path in (
        "../m.onnx",
        "/etc/m.onnx",
        "parts//m.onnx",
        "parts/./m.onnx",
        "parts/../../m.onnx",
        "parts\\..\\m.onnx",
    ):
        yield case(
            f"the path {path}", document(listing((path, GOOD))), "BAD_FILE_NAME", key=MANIFEST
        )
    yield case(
        "itself among the files",
        document(listing(("parts/m.onnx", GOOD), (MANIFEST, b"{}"))),
        "BAD_FILE_NAME",
        "FILE_MISSING",
        key=MANIFEST,
        **{"parts__m.onnx": GOOD},
    )
    yield case(
        "a manifest.json of 9 MB", lambda: b" " * 9_000_000, "MANIFEST_TOO_LARGE", key=MANIFEST
    )
    yield case(
        "257 files",
        document(listing(*((f"parts/{n}.bin", b"x") for n in range(256)), ("parts/m.onnx", GOOD))),
        "BAD_MANIFEST",
        key=MANIFEST,
    )


def names() -> Iterator[Case]:
    for what, name in [
        ("a NUL", b"y\0z"),
        ("a line break", b"y\nforged log line"),
        ("an escape sequence", b"\x1b[31mred"),
        ("right-to-left marks", "y\u202ez".encode()),
        ("a zero-width space", "y\u200bz".encode()),
        ("600 characters", b"y" * 600),
        ("10 MB", b"y" * 10_000_000),
        ("a byte order mark", "\ufeffy".encode()),
        ("a header break", b"y\r\nSet-Cookie: a=b"),
    ]:
        yield case(
            f"an output named with {what}", lambda name=name: raw_identity(y=name), "BAD_NAME"
        )
    evil = "y\u202e\n\x1b"
    yield case(
        "an operator",
        lambda: proto(lambda m: setattr(m.graph.node[0], "op_type", evil)),
        "BAD_NAME",
    )
    yield case(
        "a domain", lambda: proto(lambda m: setattr(m.graph.node[0], "domain", evil)), "BAD_NAME"
    )
    yield case(
        "an attribute",
        lambda: proto(lambda m: m.graph.node[0].attribute.add(name=evil)),
        "BAD_NAME",
    )
    yield case(
        "a metadata key",
        lambda: proto(lambda m: m.metadata_props.add(key=evil, value="")),
        "BAD_NAME",
    )
    yield case(
        "an operator that is a format string",
        model([node("%s%n{0}", "x", "y")], [value("x")], [value("y")]),
        "NOT_LOADABLE",
    )


GROUPS = {
    "not a model": not_a_model,
    "truncated": truncated,
    "archive tricks": archives,
    "external-data tricks": external_data,
    "graph tricks": graphs,
    "integer divisions": divisions.cases,
    "resource bombs": bombs,
    "lying manifests": manifests,
    "names": names,
}
