"""Ways to damage a file, each of a seeded generator: bytes, lines, JSON, and what a forger writes."""

from __future__ import annotations

import copy
import functools
import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Random = random.Random
#: The content of a file -> another.
Way = Callable[[Random, bytes], bytes]

#: Values that nobody wrote: other kinds, borders, sizes, words that mean code, files and folders.
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 2**20, 2**31, 2**40, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "td", "NaN", "1e9999", "é\u202e\x00", "x" * 100_000),
    *("../../../../etc/passwd", "/etc/passwd", "C:\\nul", "~/x.py:net", "os:system", "builtins:eval", "my.py:net"),
    *("timm.models:create_model", "torchvision:resnet18", "bu2td:nin", "resnet18", "{0.__class__}", "__class__"),
    *([], {}, [[]], [None] * 3, list(range(2000)), {"a": {"b": 1}}, [2**40, 2**40]),
)  # fmt: skip
#: What is nested without end, in JSON.
DEEP = "[" * 50_000 + "]" * 50_000


# --- bytes --------------------------------------------------------------------------------------------


def flip(rng: Random, content: bytes) -> bytes:
    """Turn a few bits."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def flip_early(rng: Random, content: bytes) -> bytes:
    """Turn a few bits of the first kilobytes, where headers and recipes are."""
    return flip(rng, content[:4096]) + content[4096:]


def cut(rng: Random, content: bytes) -> bytes:
    """Keep the beginning, often nearly all."""
    return content[: rng.choice((0, 1, 8, len(content) - 1, rng.randrange(len(content) + 1)))]


def cut_out(rng: Random, content: bytes) -> bytes:
    """Leave a piece out."""
    start, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 16, 1000))
    return content[:start] + content[start + size :]


def put_in(rng: Random, content: bytes) -> bytes:
    """Put bytes in between: zeros, what is no UTF-8, another piece, words."""
    start, other = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    words = (b"\x00" * 16, b"\xff\xfe\xed", content[other : other + 100], b"\n", b",,,", b'"', rng.randbytes(64))
    return content[:start] + rng.choice(words) + content[start:]


def overwrite(rng: Random, content: bytes) -> bytes:
    """Write other bytes over a piece."""
    start, size = rng.randrange(len(content) + 1), rng.choice((1, 4, 8, 64))
    return content[:start] + rng.choice((b"\x00", b"\xff", b"9"))[:1] * size + content[start + size :]


def replace_all(rng: Random, content: bytes) -> bytes:
    """Something else altogether."""
    other = (b"", b"\n", b"PK\x03\x04", b"hello", b"\x80\x02K\x01.", rng.randbytes(1000), content + content, code())
    return rng.choice(other)


BYTES: tuple[Way, ...] = (flip, flip_early, cut, cut_out, put_in, overwrite, replace_all)


# --- lines --------------------------------------------------------------------------------------------


def lines(rng: Random, content: bytes) -> bytes:
    """Leave lines of a table out, repeat or change them, cell by cell."""
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        place = rng.randrange(len(row))
        value = other(rng)
        ways: tuple[Callable[[], Any], ...] = (
            functools.partial(row.pop, place),
            functools.partial(row.insert, place, row[place]),
            functools.partial(rows.append, row),
            functools.partial(rows.remove, row),
            row.reverse,
            *(functools.partial(row.__setitem__, place, str(value).encode("utf-8", "replace")),) * 4,
        )
        rng.choice(ways)()
        rows = [row for row in rows if row] or [[b""]]
    return b"\n".join(b",".join(row) for row in rows)


# --- documents ----------------------------------------------------------------------------------------


def other(rng: Random) -> Any:
    """A value that nobody wrote."""
    return copy.deepcopy(rng.choice(VALUES))


def change(rng: Random, document: Any) -> Any:
    """A document of dicts and lists with one to three entries left out, added, renamed or of another value."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return other(rng)
        holder, key = rng.choice(places)
        _change_one(rng, holder, key)
    return document


def _places(document: Any) -> Any:
    if isinstance(document, dict | list):
        for key in [*document] if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def _change_one(rng: Random, holder: Any, key: Any) -> None:
    way, value = rng.randrange(10), holder[key]
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice(("more", "__class__", "../x", "", str(key) + " "))] = other(rng)
    elif way == 2 and isinstance(holder, dict):
        holder[str(key)[::-1]] = holder.pop(key)
    elif way == 3 and isinstance(value, int | float):
        holder[key] = value * rng.choice((-1, 2, 2**40, 0)) + rng.choice((0, 1))
    elif way == 4 and isinstance(value, str) and value:
        holder[key] = rng.choice((value[:-1], value[::-1], value.upper(), value * 2, f"../{value}", [value]))
    elif way == 5 and isinstance(value, list):
        holder[key] = rng.choice((value[:-1], value * 2, value[::-1], [value], dict(enumerate(map(str, value)))))
    else:
        holder[key] = other(rng)


def as_json(rng: Random, content: bytes) -> bytes:
    """JSON with other entries; some of it twice, or nested without end."""
    return written(rng, change(rng, json.loads(content))).encode("utf-8", "surrogatepass")


def written(rng: Random, document: Any) -> str:
    """A document as JSON, now and then as no writer would."""
    text = json.dumps(document)
    way = rng.randrange(8)
    if way == 0 and isinstance(document, dict) and document:
        key, value = json.dumps(rng.choice([*document])), json.dumps(other(rng))
        return text.replace(f"{key}:", f"{key}: {value}, {key}:", 1)
    if way == 1 and ": " in text:
        head, _, tail = text.partition(": ")
        return f"{head}: {rng.choice((DEEP, '9' * 10_000, 'Infinity', '1e400'))}, {tail}" if tail else text
    return text


def as_yaml(rng: Random, content: bytes) -> bytes:
    """YAML with other entries, or with what only YAML has: aliases without end, dates, tags that mean code."""
    import yaml

    odd = (
        "c0: &c0 [x, x]\n" + "".join(f"c{i + 1}: &c{i + 1} [{f'*c{i}, ' * 9}]\n" for i in range(9)) + "lr: *c9",
        "lr: !!python/object/apply:os.system ['true']\n",
        "lr: !!python/name:os.system\n", "lr: 2001-99-99\n", "lr: 0b\n", "lr: !!int x\n", "lr: !!float 1.2.3\n",
        "lr: &a [*a]\n", "&a a: *a\n", f"lr: {DEEP}\n", f"epochs: {'9' * 5000}\n", f"epochs: {'9' * 400}\n",
        "? [a]\n: b\n", "lr: =\n", "<<: 3\n", "<<: [1]\n", "- a\n", "--- a\n--- b", "lr: !!binary x\n", "\tlr: 1\n",
        "lr: 1:2:3\n", "lr: !!timestamp 9999-99-99\n", "epochs: .inf\n", "epochs: 1e30\n",
        "top_down: {top_down: {lr: 1}}\n",
    )  # fmt: skip
    if rng.random() < 0.4:
        return rng.choice(odd).encode()
    return str(yaml.safe_dump(change(rng, yaml.safe_load(content)), allow_unicode=True)).encode("utf-8", "replace")


# --- code in pickles ----------------------------------------------------------------------------------


class Code:
    """An object that runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.path.join(os.environ.get("CANARY", "/nonexistent"), "canary"),)


def code() -> bytes:
    """A pickle that runs code."""
    return pickle.dumps(Code(), protocol=2)


# --- files of networks --------------------------------------------------------------------------------


def forged(rng: Random, recipe: dict[str, Any], weights: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Another recipe, or other weights; the seal is left out, is right, or is left as it is."""
    from bu2td.io.seal import SEAL, seal

    recipe, weights = copy.deepcopy(recipe), dict(weights)
    if rng.random() < 0.6:
        recipe = change(rng, recipe)
    else:
        _change_weights(rng, weights)
    if isinstance(recipe, dict) and SEAL in recipe:
        way = rng.randrange(3)
        if way == 0:
            del recipe[SEAL]
        if way == 1:
            try:
                recipe[SEAL] = seal(recipe, weights)
            except Exception:  # what cannot be sealed
                del recipe[SEAL]
    return recipe, weights


def _change_weights(rng: Random, weights: dict[str, Any]) -> None:
    name = rng.choice([*weights])
    value = weights.pop(name)
    names = (name[:-1], "", "../../x", "__class__", "forward", f"{name}.more", name.upper(), "r1..x")
    ways: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: value.flatten()[:-1],
        lambda: torch.zeros(*value.shape, 2),
        lambda: value.double(),
        lambda: value.to(torch.int64),
        lambda: value.to(torch.bool),
        lambda: value.to(torch.complex64),
        lambda: value.to(torch.float8_e4m3fn),
        lambda: value.to_sparse(),
        lambda: value.to("meta"),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda: torch.zeros((1,)).expand(2**40),
        lambda: torch.zeros(()).expand(value.shape),
        lambda: torch.zeros(0),
        lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value,
        lambda: rng.choice((None, 3, "x", [1.0], {"a": 1})),
    )
    found = rng.choice(ways)()
    if found is not None or rng.random() < 0.5:
        weights[name] = found
    if rng.random() < 0.2:
        weights[rng.choice(names)] = value


def as_pt(rng: Random, content: bytes) -> bytes:
    """The same file of torch.save with another content, or an archive that no torch.save writes."""
    way = rng.randrange(10)
    if way == 0:
        return _archive(rng, content)
    if way == 1:
        file = io.BytesIO()
        torch.save(rng.choice((Code(), {"recipe": Code()}, [1], None, {"state_dict": {}})), file,
                   _use_new_zipfile_serialization=rng.random() < 0.5)  # fmt: skip
        return file.getvalue()
    whole = torch.load(io.BytesIO(content), weights_only=True)
    recipe, weights = forged(rng, whole["recipe"], whole["state_dict"])
    if way == 2 and isinstance(recipe, dict):
        recipe[rng.choice(("options", "why", "image_shape", "training", "sha256"))] = _odd(rng)
    file = io.BytesIO()
    torch.save({"recipe": recipe, "state_dict": weights}, file)
    return file.getvalue()


def _odd(rng: Random) -> Any:
    """What a pickle holds and JSON does not: tensors, sets, bytes, and little that is written out as much."""
    many: Any = ["x"] * 10
    for _ in range(12):
        many = [many] * 10
    return rng.choice((torch.ones(2), {1, 2}, b"x", 1j, many, torch.float32, (1, 2), {1: 2}, {("a",): 1}))


def _archive(rng: Random, content: bytes) -> bytes:
    """An archive with members left out, packed, doubled, swapped, elsewhere, or with code in its pickle."""
    file = io.BytesIO()
    way = rng.randrange(7)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        members = old.namelist()
        victim, other = rng.choice(members), rng.choice(members)
        for name in members:
            data = old.read(name)
            if name == victim and way == 0:
                continue
            if way == 1:
                new.writestr(name, data, zipfile.ZIP_DEFLATED)
                continue
            if name == victim and way == 2:
                name = f"../../{name}"
            if name == victim and way == 3:
                data = old.read(other)
            if name.endswith("data.pkl") and way == 4:
                data = code()
            if name.endswith("data.pkl") and way == 5:
                data = _larger(rng, data)
            if name == victim and way == 6:
                new.writestr(name, bytes(30_000_000), zipfile.ZIP_DEFLATED)
                continue
            new.writestr(name, data)
    return file.getvalue()


def _larger(rng: Random, data: bytes) -> bytes:
    """The pickle of a state_dict with one of its small numbers made large: a size, a stride, an offset."""
    places = [i for i in range(len(data) - 1) if data[i : i + 1] == b"K"]
    place = rng.choice(places)
    number = rng.choice((2**30, 2**36, 2**40, -1, 2**62)).to_bytes(8, "little", signed=True)
    return data[:place] + b"\x8a\x08" + number + data[place + 2 :]


def as_safetensors(rng: Random, content: bytes) -> bytes:
    """The same file with another header, other tensors or another recipe."""
    from safetensors.torch import load, save

    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    recipe = json.loads(header["__metadata__"]["bu2td"])
    if rng.random() < 0.3:
        text = written(rng, change(rng, header)).encode("utf-8", "replace")
        length = rng.choice((len(text),) * 6 + (2**60, 2**40, len(text) - 1, 0))
        return struct.pack("<Q", length) + text + content[8 + size :]
    recipe, weights = forged(rng, recipe, load(content))
    plain = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor) and v.layout is torch.strided
             and v.device.type == "cpu" and v.numel() < 2**20 and not v.is_quantized}  # fmt: skip
    plain = {name: value.contiguous().clone() for name, value in plain.items()}
    return bytes(save(plain, {"bu2td": written(rng, recipe)}))


# --- arrays -------------------------------------------------------------------------------------------


def as_npz(rng: Random, content: bytes) -> bytes:
    """The same archive with other arrays: of objects, of other shapes, of sizes that are not there."""
    file = io.BytesIO()
    with np.load(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        victim = rng.choice(old.files)
        for name in old.files:
            array, data = old[name], io.BytesIO()
            if name == victim:
                array = rng.choice(
                    (
                        array[..., None], array.ravel()[:-1], np.array(["x"] * max(array.size, 1)), np.array(3),
                        np.array([Code()], object), np.zeros(0), np.zeros(array.shape, complex), np.array("{}"),
                        np.array(DEEP), np.array('{"a": NaN}'), np.array("[1]"), np.zeros((2, 2, 2)),
                    )
                )  # fmt: skip
            np.lib.format.write_array(data, array, allow_pickle=True)
            raw = data.getvalue()
            if name == victim and rng.random() < 0.4:
                raw = raw.replace(b"(", f"({rng.choice((2**30, 2**40, 2**62, -1))},".encode(), 1)[: len(raw)]
            if name == victim and rng.random() < 0.1:
                name = rng.choice(("../../x", "", "x" * 300))
            if name == victim and rng.random() < 0.1:
                raw += bytes(50_000_000)
            new.writestr(f"{name}.npy", raw)
    return file.getvalue()


def as_idx(rng: Random, content: bytes) -> bytes:
    """Other sizes in the header of an idx file, packed or not."""
    packed = content[:2] == b"\x1f\x8b"
    data = bytearray(gzip.decompress(content) if packed else content)
    place = rng.randrange(4, 16, 4)
    data[place : place + 4] = struct.pack(">I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
    if rng.random() < 0.3:
        data[rng.randrange(4)] = rng.randrange(256)
    if rng.random() < 0.2:
        data += bytes(20_000_000)
    return gzip.compress(bytes(data), 1) if packed else bytes(data)


def as_npy(rng: Random, content: bytes) -> bytes:
    """Another shape or type in the header of an array."""
    old = rng.choice((b"(10, 8", b"8, 8", b"|u1", b"shape", b"False", b", 3)"))
    new = rng.choice(
        (b"(2**40", b"1099511627776, 8", b"|O", b"<f8", b"-1, 8", b"()", b"__import__('os')", b"9" * 400)
    )
    return content.replace(old, new, 1)
