"""Changes that damage a file where its form is: a field that goes or takes another type, a size that lies, a text cut short.

Each takes a `random.Random` first, so that a seed says the whole file.
"""

import io
import json
import struct
import zipfile

DEEP = "DEEP"  # stands for JSON nested a hundred thousand deep, and DIGITS for a number of 5,000 digits
DIGITS = "DIGITS"
LEAVES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "0",
    "1",
    "../..",
    ".",
    "../branch",
    "/etc/passwd",
    "\x00",
    "\ud800",
    "\U0001f600",
    "e\u0301",
    "\u2028",
    "<script>",
    "{{ 1 }}",
    "a" * 300,
    "positive",
    "first",
    [],
    {},
    [[]],
    [None],
    [1, "x"],
    {"": 0},
    {"id": {"id": 0}},
    DEEP,
    DIGITS,
)
BYTES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"\xed\xa0\x80", b"{", b"[" * 5000, b"\xe2\x80\xa8", b"'", b",,,")


def tree(draw, value):
    """JSON's or Python's data with one to three places changed."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = one_place(draw, value)
    return value


def one_place(draw, value):
    if isinstance(value, dict | list) and value and draw.random() < 0.8:  # further in
        items = dict(value) if isinstance(value, dict) else list(value)
        key = draw.choice(list(items)) if isinstance(items, dict) else draw.randrange(len(items))
        what = draw.random()
        if what < 0.6:
            items[key] = one_place(draw, items[key])
        elif what < 0.75:
            del items[key]
        elif isinstance(items, dict):
            items[draw.choice([*items, "x", "__class__", "", "id"])] = items[key] if what < 0.85 else items.pop(key)
        else:
            items.insert(draw.randrange(len(items) + 1), items[key] if what < 0.9 else draw.choice(LEAVES))
        return items
    what = draw.random()
    if what < 0.1:
        return [value]
    if what < 0.2:
        return {"value": value}
    if what < 0.3 and isinstance(value, int | float) and not isinstance(value, bool):
        return draw.choice((-value, value * 10**6, value + 1, float(value), str(value)))
    if what < 0.4 and isinstance(value, str):
        return draw.choice((value * 2, value[::-1], value[: len(value) // 2], f" {value} ", value.upper(), value + "\ud800"))
    return draw.choice(LEAVES)


def dumped(value, **options):
    """JSON text of what `tree` made."""
    text = json.dumps(value, **options)
    deep = nested(text)
    return text.replace(json.dumps(DEEP), deep).replace(json.dumps(DIGITS), "9" * 5000)


def nested(text):
    depth = 900 + len(text) % 100 if len(text) % 7 else 100_000  # near what Python can follow, or far beyond
    return "[" * depth + "]" * depth if len(text) % 3 else '{"id":' * depth + "0" + "}" * depth


def encoded(draw, text):
    """A text's bytes, one in eight times in another encoding than UTF-8, or with bytes that are none."""
    if draw.random() < 0.88:
        return text.encode("utf-8", draw.choice(("replace", "surrogatepass")))
    return text.encode(draw.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32", "utf-16-le")), "replace")


def raw(draw, content):
    """Bytes with one to four of them changed, cut out, doubled or put in."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((1, 1, 4, 8, 100)))
        what = draw.randrange(6)
        if what == 0 and start < len(content):
            content = content[:start] + bytes([content[start] ^ 1 << draw.randrange(8)]) + content[start + 1 :]
        elif what == 1:
            content = content[:start]
        elif what == 2:
            content = content[:start] + content[end:]
        elif what == 3:
            content = content[:end] + content[start:]
        elif what == 4:
            content = content[:start] + draw.choice(BYTES) + content[start:]
        else:
            content = content[:start] + sized(draw) + content[start + 8 :]
    return content


def sized(draw):
    """A size that may lie, as eight bytes or four."""
    number = draw.choice((0, 1, 2, 7, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1))
    return struct.pack("<Q", number) if draw.random() < 0.7 else struct.pack("<I", number % 2**32)


def as_json(draw, content):
    if draw.random() < 0.15:
        return raw(draw, content)
    return encoded(draw, dumped(tree(draw, json.loads(content)), ensure_ascii=draw.random() < 0.5))


def as_rows(draw, content):
    """A file of JSON lines."""
    if draw.random() < 0.15:
        return raw(draw, content)
    lines = content.decode().splitlines()
    for _ in range(draw.choice((1, 1, 2))):
        place, what = draw.randrange(len(lines)), draw.random()
        if what < 0.7:
            try:
                lines[place] = dumped(tree(draw, json.loads(lines[place])), ensure_ascii=draw.random() < 0.5)
            except ValueError:  # changed before
                lines[place] += "}"
        elif what < 0.8:
            lines.insert(draw.randrange(len(lines)), lines[place])
        elif what < 0.9:
            lines[place] = lines[place][: draw.randrange(len(lines[place]) + 1)]
        else:
            ends = ("", " ", "[]", "null", "1", '"x"', "{}", "NaN", lines[place] * 2, "\ufeff" + lines[place])
            lines[place] = draw.choice(ends)
    return encoded(draw, draw.choice(("\n", "\n", "\r\n", "\n\n")).join(lines) + draw.choice(("\n", "")))


CELLS = (
    "",
    " ",
    "0",
    "6",
    "-1",
    "nan",
    "inf",
    "1e999",
    "1_0",
    "٣",
    "\x00",
    '"',
    "=1+1",
    "x",
    "a,b",
    "9" * 5000,
    "x" * 140_000,
    "yes",
)


def as_table(draw, content, between=","):
    """A table, its columns parted by `between`."""
    if draw.random() < 0.15:
        return raw(draw, content)
    rows = [line.split(between) for line in content.decode().splitlines()]
    for _ in range(draw.choice((1, 1, 2))):
        row, what = draw.choice(rows[:1] * 2 + rows), draw.random()
        place = draw.randrange(len(row)) if row else 0
        if what < 0.6 and row:
            old = row[place]
            row[place] = draw.choice((*CELLS, old.upper(), f'"{old}"', f'"{old}', f"{old}\n{old}"))
        elif what < 0.75:
            row.insert(place, draw.choice(CELLS))
        elif what < 0.9 and row:
            del row[place]
        else:
            rows.insert(draw.randrange(len(rows) + 1), list(row))
    lines = [draw.choice((between, between, between, ";", "\t")).join(row) for row in rows]
    return encoded(draw, draw.choice(("\n", "\n", "\r\n", "\r")).join(lines))


def as_safetensors(draw, content):
    """A header of changed JSON, its length told truly or not."""
    if draw.random() < 0.3:
        return raw(draw, content)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if draw.random() < 0.6 and "__metadata__" in header:
        about = dumped(tree(draw, json.loads(header["__metadata__"]["metadata"])))
        header["__metadata__"]["metadata"] = about
        text = json.dumps(header).encode()
    else:
        text = encoded(draw, dumped(tree(draw, header)))
    told = struct.pack("<Q", len(text)) if draw.random() < 0.8 else sized(draw).ljust(8, b"\x00")
    return told + text + content[8 + length :]


def as_gguf(draw, content):
    """A header whose sizes, types and texts lie."""
    if draw.random() < 0.3:
        return raw(draw, content)
    head = min(len(content) - 8, 1500)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(head)
        new = sized(draw) if draw.random() < 0.6 else struct.pack("<I", draw.randrange(16))
        content = content[:place] + new + content[place + len(new) :]
    return content


def as_zip(draw, content):
    """Another zip of the same entries, with names, links, sizes and packing that nobody means well with."""
    if draw.random() < 0.3:
        return raw(draw, content)
    into = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(into, "w") as new:
        for info in old.infolist():
            inside, name = old.read(info), info.filename
            if draw.random() < 0.4:
                name = draw.choice(
                    (
                        f"../../{name}",
                        f"/tmp/{name}",
                        f"C:\\{name}",
                        name.replace("/", "\\"),
                        f"{name}/",
                        f"{name}\n",
                        "x" * 300,
                        f"a/{name}.zip",
                        "🙂/" + name,
                        ".",
                        "a/../b",
                        "//",
                        name.replace(".ipynb", ".py"),
                        "\x1b[31m" + name,
                        "a//" + name,
                    )
                )
            fresh = zipfile.ZipInfo(name, draw.choice((info.date_time, (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58))))
            fresh.compress_type = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            fresh.external_attr = draw.choice((0o100644, 0o120777, 0o040755, 0o010644)) << 16
            if draw.random() < 0.1:
                inside = bytes(2**24 + 2**20)
            elif draw.random() < 0.3:
                inside = raw(draw, inside)
            new.writestr(fresh, inside)
            if draw.random() < 0.1:
                new.writestr(fresh, inside)
    content = into.getvalue()
    if draw.random() < 0.4:  # one of the fields of an entry in the list at the end: sizes, flags, packing, where it begins
        place = content.rfind(b"PK\x01\x02", 0, draw.randrange(len(content)) + 1) + draw.choice((8, 10, 20, 24, 28, 30, 32, 42))
        if place >= 50:
            new = sized(draw)[: draw.choice((1, 2, 4))]
            content = content[:place] + new + content[place + len(new) :]
    return content


def as_text(*parts):
    """Of a text in lines: `parts` put in, lines that go or come twice."""

    def changed(draw, content):
        if draw.random() < 0.15:
            return raw(draw, content)
        lines = content.decode().split("\n")
        for _ in range(draw.choice((1, 1, 2, 3))):
            place, what = draw.randrange(len(lines) + 1), draw.random()
            if what < 0.6:
                lines.insert(place, draw.choice(parts))
            elif what < 0.75 and place < len(lines):
                lines[place] += draw.choice(parts)
            elif what < 0.9:
                lines[place : place + draw.choice((1, 3))] = []
            else:
                lines[place:place] = lines[place : place + 5]
        return encoded(draw, "\n".join(lines))

    return changed
