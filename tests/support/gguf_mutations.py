"""Seeded damage to GGUF files, placed by what lies where, and a writer of small tokenizers.

A GGUF file is a header, key-value pairs, tensor infos, padding and data; `Layout` walks them and notes the offset
of every number and text, so that a mutation can hit a count, a length, a value or a shape instead of mostly weights.
"""
import random
import struct

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Layout:
    """Offsets of the parts of a valid GGUF: each a (offset, struct format) of a number or (offset, length) of a text."""

    def __init__(self, data):
        self.data = data
        self.at = 4
        self.counts = [(4, "I")]
        self.lengths, self.types, self.values, self.texts, self.shapes = [], [], [], [], []
        self.pairs = []  # (key, start, value's start, end)
        self.counts += [(8, "Q"), (16, "Q")]
        self.at = 8
        num_tensors, num_pairs = self.number("Q"), self.number("Q")
        for _ in range(num_pairs):
            self.pair()
        self.infos = self.at
        self.tensor_infos = []
        for _ in range(num_tensors):
            self.tensor()
        self.infos_end = self.at
        # Hyper-parameters, rather than one of many token scores.
        own = [(start, end) for key, start, _, end in self.pairs if "tokenizer." not in key]
        self.parameters = [place for place in self.values if any(start <= place[0] < end for start, end in own)]

    def number(self, kind, into=None):
        if into is not None:
            into.append((self.at, kind))
        value = struct.unpack_from("<" + kind, self.data, self.at)[0]
        self.at += struct.calcsize("<" + kind)
        return value

    def text(self):
        length = self.number("Q", self.lengths)
        self.texts.append((self.at, length))
        self.at += length
        return bytes(self.data[self.at - length:self.at])

    def value(self, kind):
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            element, count = self.number("I", self.types), self.number("Q", self.lengths)
            for _ in range(count):
                self.value(element)
        else:
            self.number(SCALARS[kind], self.values)

    def pair(self):
        start = self.at
        key = self.text()
        kind = self.number("I", self.types)
        value = self.at
        self.value(kind)
        self.pairs.append((key.decode("latin1"), start, value, self.at))

    def tensor(self):
        start = self.at
        name = self.text()
        for _ in range(self.number("I", self.shapes)):
            self.number("Q", self.shapes)
        self.number("I", self.types)
        self.number("Q", self.shapes)
        self.tensor_infos.append((name, start, self.at))


def interesting(kind, value, rng):
    """A number that programs tend to stumble over, or one next to the right one."""
    if kind in "fd":
        return rng.choice([0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 1e38, value * rng.choice([-1, 2, 1e9])])
    bits = 8 * struct.calcsize("<" + kind)
    low, high = (0, 2**bits - 1) if kind.isupper() else (-2**(bits - 1), 2**(bits - 1) - 1)
    wanted = rng.choice([0, 1, 2, 3, -1, value + 1, value - 1, 2 * value, value // 2, value + rng.randint(-64, 64), 7, 255, 256, 511,
                         513, 1 << 15, 1 << 16, (1 << 24) + 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
                         1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
    return low + (wanted - low) % (high - low + 1)


def put_number(data, place, rng):
    at, kind = place
    value = struct.unpack_from("<" + kind, data, at)[0]
    if kind in "fd" and rng.random() < 0.3:
        data[at + rng.randrange(struct.calcsize("<" + kind))] ^= 1 << rng.randrange(8)
        return
    try:
        struct.pack_into("<" + kind, data, at, interesting(kind, value, rng))
    except (OverflowError, ValueError):
        struct.pack_into("<" + kind, data, at, 0)


def drop_pair(data, layout, rng):
    """The file without one of its keys, with the right count."""
    key, start, _, end = rng.choice(layout.pairs)
    shorter = data[:start] + data[end:]
    struct.pack_into("<Q", shorter, 16, len(layout.pairs) - 1)
    return repad(shorter, layout.infos_end - (end - start), data, layout.infos_end)


def repeat_pair(data, layout, rng):
    key, start, _, end = rng.choice(layout.pairs)
    longer = data[:end] + data[start:end] + data[end:]
    struct.pack_into("<Q", longer, 16, len(layout.pairs) + 1)
    return repad(longer, layout.infos_end + (end - start), data, layout.infos_end)


def drop_tensor(data, layout, rng):
    _, start, end = rng.choice(layout.tensor_infos[-1:] if rng.random() < 0.5 else layout.tensor_infos)
    shorter = data[:start] + data[end:]
    struct.pack_into("<Q", shorter, 8, len(layout.tensor_infos) - 1)
    return repad(shorter, layout.infos_end - (end - start), data, layout.infos_end)


def repad(changed, infos_end, original, original_infos_end, alignment=32):
    up = lambda n: (n + alignment - 1) // alignment * alignment
    return bytearray(changed[:infos_end]) + bytes(up(infos_end) - infos_end) + original[up(original_infos_end):]


def mutate(original, layout, rng, weights=True):
    """One to three pieces of damage, to the tensors' data only with `weights`. Returns the bytes and what was done."""
    data = bytearray(original)
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(["count", "length", "length", "type", "value", "value", "value", "value", "text", "text", "shape",
                           "shape", "flip", "flip", "data", "cut", "drop", "repeat", "drop_tensor"])
        if kind == "data" and not weights:
            kind = "flip"
        if kind in ("cut", "drop", "repeat", "drop_tensor"):  # these move everything: alone
            if done:
                continue
            if kind == "cut":
                end = rng.choice([layout.infos_end, len(data)])
                data = data[:rng.randrange(end)]
            else:
                data = {"drop": drop_pair, "repeat": repeat_pair, "drop_tensor": drop_tensor}[kind](data, layout, rng)
            return data, kind
        if kind == "text":
            at, length = rng.choice([text for text in layout.texts if text[1] > 0])
            for _ in range(rng.choice([1, 1, length])):
                data[at + rng.randrange(length)] = rng.choice([0, 1, 10, 32, 37, 46, 48, 57, 97, 127, 128, 255, rng.randrange(256)])
        elif kind == "flip":
            data[rng.randrange(layout.infos_end)] ^= 1 << rng.randrange(8)
        elif kind == "data":
            for _ in range(rng.choice([1, 20])):
                data[rng.randrange(layout.infos_end, len(data))] = rng.choice([0, 0x7f, 0x80, 0xff, rng.randrange(256)])
        else:
            places = {"count": layout.counts, "length": layout.lengths, "type": layout.types, "value": layout.values,
                      "shape": layout.shapes}[kind]
            if kind == "value" and rng.random() < 0.7:  # hyper-parameters rather than one of many token scores
                places = layout.parameters
            put_number(data, rng.choice(places), rng)
        done.append(kind)
    return data, "+".join(done)


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def texts(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(text(value) for value in values)


def numbers(kind, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(struct.pack("<" + SCALARS[kind], value) for value in values)


def bpe_pairs(size):
    """A byte-pair vocabulary of `size` pieces: printable characters, merges of them, one end of text."""
    pieces = [chr(c) for c in range(33, 127)] + ["\u0120", "\u010a"]
    merges = []
    for a in "etaoinsrh":
        for b in "etaoinsrh":
            if len(pieces) < size - 1:
                pieces.append(a + b)
                merges.append(a + " " + b)
    pieces.append("<|end|>")
    return [pair("tokenizer.ggml.model", STRING, text("gpt2")), pair("tokenizer.ggml.pre", STRING, text("default")),
            pair("tokenizer.ggml.tokens", ARRAY, texts(pieces)),
            pair("tokenizer.ggml.token_type", ARRAY, numbers(5, [1] * (size - 1) + [3])),
            pair("tokenizer.ggml.merges", ARRAY, texts(merges)),
            pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", size - 1)),
            pair("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", size - 1)),
            pair("tokenizer.ggml.add_bos_token", 7, b"\1"),
            pair("tokenizer.chat_template", STRING,
                 text("{% for message in messages %}<|im_start|>{{message['role']}}\n{{message['content']}}<|im_end|>\n"
                      "{% endfor %}"))]


def spm_pairs(size):
    """A sentence-piece vocabulary of `size` pieces: three specials, characters, bytes as far as there is room."""
    pieces, kinds = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    for piece in ["\u2581"] + [chr(c) for c in range(97, 123)] + ["\u2581" + c for c in "tasio"] + ["th", "he", "in"]:
        pieces.append(piece)
        kinds.append(1)
    for byte in range(size - len(pieces)):
        pieces.append(f"<0x{byte:02X}>")
        kinds.append(6)
    return [pair("tokenizer.ggml.model", STRING, text("llama")), pair("tokenizer.ggml.tokens", ARRAY, texts(pieces)),
            pair("tokenizer.ggml.scores", ARRAY, numbers(6, [-float(i) for i in range(size)])),
            pair("tokenizer.ggml.token_type", ARRAY, numbers(5, kinds)),
            pair("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
            pair("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 2)),
            pair("tokenizer.ggml.unknown_token_id", 4, struct.pack("<I", 0))]


def with_tokenizer(data, make_pairs):
    """The same model with another tokenizer of the same size."""
    layout = Layout(data)
    kept = [(start, end) for key, start, _, end in layout.pairs if not key.startswith("tokenizer.")]
    tokens = next(value for key, _, value, _ in layout.pairs if key == "tokenizer.ggml.tokens")
    pairs = make_pairs(struct.unpack_from("<Q", data, tokens + 4)[0])
    head = bytearray(data[:24])
    struct.pack_into("<Q", head, 16, len(kept) + len(pairs))
    body = b"".join(bytes(data[start:end]) for start, end in kept) + b"".join(pairs)
    head += body + data[layout.infos:layout.infos_end]
    return repad(head, len(head), data, layout.infos_end)
