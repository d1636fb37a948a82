"""Token ids by the `sentencepiece` package, for the tests of SentencePiece vocabularies.

    pip install sentencepiece protobuf gguf
    python benches/peers/sentencepiece_ids.py > tests/engine/pieces.json
    python benches/peers/sentencepiece_ids.py --gguf gemma-3-270m-q4_k_m.gguf > tests/engine/gemma_ids.json

Without --gguf the vocabularies are small random ones, which stand in the output; with it there is one
vocabulary, the file's own (rebuilt from its tokens, scores and types), and only texts and ids are written.
"""

import argparse
import json
import random
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def processor(tokens, scores, types, space_first):
    model = proto.ModelProto()
    for token, score, kind in zip(tokens, scores, types):
        # The converter to GGUF writes the spaces of user-defined pieces as spaces.
        piece = token.replace(" ", "▁") if kind == USER_DEFINED else token
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = BYTE in types
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = space_first
    model.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def small(rng, with_bytes, space_first):
    """A random vocabulary over few characters, with every type of piece."""
    tokens, scores, types = ["<unk>", "<s>", "</s>"], [0.0] * 3, [UNKNOWN, CONTROL, CONTROL]
    if with_bytes:
        for byte in range(256):
            tokens.append(f"<0x{byte:02X}>")
            scores.append(0.0)
            types.append(BYTE)
    characters = ["▁", "a", "b", "c", "é", "東"]
    pieces = set(characters)
    grown = list(characters)
    for _ in range(60):
        piece = rng.choice(grown) + rng.choice(grown)
        if len(piece) <= 6 and piece not in pieces:
            pieces.add(piece)
            grown.append(piece)
    user_defined = ["▁▁▁", "a▁b", "\n", "\n\n", "ca"]
    for piece in grown:
        if piece in user_defined:
            continue
        tokens.append(piece)
        # Few different scores, so that many are equal.
        scores.append(float(-rng.randrange(12)))
        types.append(UNUSED if len(piece) > 1 and rng.random() < 0.15 else NORMAL)
    for piece in user_defined:
        tokens.append(piece.replace("▁", " "))
        scores.append(-1000.0)
        types.append(USER_DEFINED)
    # The last is in use: unused ones at the end would be padding.
    tokens.append("bbb▁")
    scores.append(-3.5)
    types.append(NORMAL)
    return tokens, scores, types, space_first


def small_texts(rng):
    alphabet = "  aaabbbccé東\n🙂x"
    texts = ["", " ", "a", "   ", "<s>a</s>", "<0x41>", "▁a▁"]
    texts += ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))) for _ in range(40)]
    return texts


REAL_TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello  world ",
    "In 1984, 12.5% of 1,000,000 people",
    "naïve café — 東京 🙂 👩‍👩‍👧‍👦 🇩🇪",
    "line\nline\n\nline\n\n\n\tTab\t\tTabs don't\r\n",
    "".join(" " * n + "x" for n in range(1, 40)),
    "".join("\n" * n + "x" for n in range(1, 40)),
    "<bos><eos><start_of_turn>user\nHi<end_of_turn>\n<unused7>",
    "<0x41> <0x0A> <unk> <pad> [multimodal] <start_of_image>",
    "<table><tr><td>1</td></tr></table> <h1>x</h1> </s> <s>",
    "▁▁a▁b",
    "def f(x):\n    return {\n        'a': x ** 2,  # no comment\n    }\n",
    "𐍈𐍉 \u0000 \u0007 \ufffd \ue000 ꙮ 𒀱",
    "Ünïcödé ﬁ ½ Å Å e\u0301",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก 안녕하세요 Здравствуй, мир Γειά",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20#e 192.168.0.1 user@example.org",
]


def real(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    types = list(get("token_type"))
    # The converter types it as a control token; the package needs its type.
    types[get("unknown_token_id")] = UNKNOWN
    return get("tokens"), get("scores"), types, get("add_space_prefix")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", help="a model file with a SentencePiece vocabulary")
    arguments = parser.parse_args()
    rng = random.Random(7)
    if arguments.gguf:
        encode = processor(*real(arguments.gguf)).encode
        texts = list(REAL_TEXTS)
        alphabet = [*"  \n\tabcdeXYZ019.,<>/", "é", "東", "🙂", "▁", " the", "ing", "<b>", "  "]
        texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 40))) for _ in range(60)]
        result = [{"text": text, "ids": encode(text)} for text in texts]
    else:
        result = []
        for with_bytes in (True, False):
            for space_first in (True, False):
                tokens, scores, types, _ = small(rng, with_bytes, space_first)
                encode = processor(tokens, scores, types, space_first).encode
                texts = small_texts(rng)
                ids = [{"text": text, "ids": encode(text)} for text in texts]
                result.append(
                    {
                        "tokens": tokens,
                        "scores": scores,
                        "types": types,
                        "space_first": space_first,
                        "texts": ids,
                    }
                )
    json.dump(result, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
