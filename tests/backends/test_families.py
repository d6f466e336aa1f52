"""Every family of docs/models.md: a batch answers as each text alone, and as the library does; costs are counted.

``PYTHONPATH=tests python tests/backends/test_families.py`` writes the tables of docs/models.md.
"""

import json
import random
import re
import shutil
import string
from pathlib import Path

import pytest
import torch
from conftest import FAST, QUIET

from elang.backends.flops import check_cost, flops_by_length
from elang.backends.loading import padding as families
from elang.backends.loading.load import load_model
from elang.backends.loading.tokenizer import load_tokenizer
from elang.cli.verbs import main
from elang.data.encoding import encode_examples
from elang.errors import InputError
from elang.notices import forget_notices, notices
from elang.tasks.text_task import TextTask

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
LETTERS = string.ascii_letters
WORDS = 4 + len(LETTERS)
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TABLE = {"max_position_embeddings": 64}
OFFSET = {**SIZE, "max_position_embeddings": 65}  # a position is behind the padding token's
PLAIN = {**SIZE, **TABLE}
SMALL = {**PLAIN, "embedding_size": 16}
RELATIVE = {**PLAIN, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {**PLAIN, "num_key_value_heads": 2}
HEAD = {**LLAMA, "head_dim": 8}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 48, "moe_intermediate_size": 16}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
BART = {"d_model": 32, "decoder_start_token_id": 2, **TABLE}
BART |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 64))}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
BLOCKS = {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 256}

# What makes a tiny model of each family.
ENCODERS = {
    "albert": SMALL,
    "bert": PLAIN,
    "big_bird": {**SIZE, **BLOCKS},
    "camembert": OFFSET,
    "data2vec-text": OFFSET,
    "deberta": {**RELATIVE, "max_relative_positions": 16},
    "deberta-v2": {**RELATIVE, "position_buckets": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **TABLE},
    "electra": SMALL,
    "ernie": PLAIN,
    "longformer": {**OFFSET, "attention_window": 8},
    "megatron-bert": PLAIN,
    "modernbert": {**PLAIN, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": OFFSET,
    "rembert": {**PLAIN, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": OFFSET,
    "roformer": SMALL,
    "squeezebert": {**PLAIN, "embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, **TABLE},
    "xlm-roberta": OFFSET,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}
DECODERS = {
    "biogpt": PLAIN,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**SIZE, "alibi": False},
    "gemma": HEAD,
    "gemma2": {**HEAD, **WINDOW},
    "gemma3_text": {**HEAD, **WINDOW},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"window_size": 8, **TABLE},
    "gpt_neox": PLAIN,
    "gptj": {**GPT, "rotary_dim": 4},
    "llama": LLAMA,
    "mistral": {**LLAMA, **WINDOW},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": LLAMA,
    "opt": {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 16, **TABLE},
    "phi": LLAMA,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": HEAD,
    "qwen3_moe": {**HEAD, "num_experts": 4, **EXPERTS},
    "smollm3": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
}
TEXT_TO_TEXT = {
    "bart": BART,
    "bigbird_pegasus": {**BART, **BLOCKS},
    "blenderbot": BART,
    "blenderbot-small": BART,
    "led": {n: v for n, v in BART.items() if n not in TABLE}
    | {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 8},
    "longt5": {**T5, "local_radius": 4, "global_block_size": 4},
    "m2m_100": BART,
    "marian": BART,
    "mbart": BART,
    "mt5": T5,
    "mvp": BART,
    "pegasus": BART,
    "pegasus_x": {**BART, "block_size": 8, "num_global_tokens": 4},
    "plbart": BART,
    "prophetnet": {"hidden_size": 32, "decoder_start_token_id": 2, **TABLE}
    | {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
    | {f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    "t5": T5,
    "umt5": T5,
}
FAMILIES = {"encoder": ENCODERS, "decoder": DECODERS, "text-to-text": TEXT_TO_TEXT}
ALL = [(kind, name) for kind, known in FAMILIES.items() for name in known]
SPECIAL = {"<pad>": "pad", "<unk>": "unk", "<s>": "bos", "</s>": "eos"}


def write_tokenizer(folder, text_to_text=False, ends=True, **special):
    """A tokenizer of letters; it puts ``</s>`` behind a text where it ``ends``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # As of a Qwen, for which the library puts its own pre-tokenizer in the place of any other.
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate([*SPECIAL, *LETTERS])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>" if text_to_text else "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    names = {f"{name}_token": token for token, name in SPECIAL.items()} | special
    names = {"cls_token": "<s>", **LIMIT, **names}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{n: t for n, t in names.items() if t})
    found.save_pretrained(folder)
    return found


LIMIT = {"model_max_length": 48, "model_input_names": ["input_ids", "attention_mask"]}


def write_family(folder, kind, name, change=None, tokenizer=None):
    """A tiny random model of a family, with weights large enough for its answers to differ; its config.json changed."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    text_to_text = kind == "text-to-text"
    write_tokenizer(folder, text_to_text, **(tokenizer or {}))
    own = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **FAMILIES[kind][name]}
    if not text_to_text:
        own["num_labels"] = 3
    if text_to_text and name == "mbart":
        own["forced_eos_token_id"] = None
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **own)
    model = (AutoModelForSeq2SeqLM if text_to_text else AutoModelForSequenceClassification).from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    path = folder / "config.json"
    known = json.loads(path.read_text()) | (change or {})
    path.write_text(json.dumps({n: v for n, v in known.items() if v is not None or n not in (change or {})}))
    return str(folder)


def texts(count=6, most=60, ending=""):
    """Texts of many lengths, the longest of which is cut to the model's limit."""
    chance = random.Random(0)
    lengths = [2, 3, 7, 14, 25, most][:count]
    return [("".join(chance.choices(LETTERS, k=n)) + ending,) for n in lengths]


def task_of(text_to_text):
    names = ["x", "Y", "z"] if text_to_text else [f"LABEL_{i}" for i in range(3)]
    return TextTask.of(names, {"prompt": "{text}", "answers": names} if text_to_text else None)


def encoded(model, rows):
    limit = min(60, model.tokenizer.model_max_length)
    return encode_examples(model.reader, model.task, rows, None, limit), len(rows)


@torch.no_grad()
def answers(model, rows):
    """Logits, router features and FLOPs of texts: of each alone, and of all in one batch."""
    given, count = encoded(model, rows)
    found = []
    for chosen in ([[i] for i in range(count)], [list(range(count))]):
        parts = []
        for part in chosen:
            inputs = given.batch(part)
            answer = model(inputs)
            parts.append(
                {"logits": answer.logits, **model.router_features(answer)} | model.flops(inputs, steps=answer.steps)
            )
        found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return found, given


def the_librarys(folder, model, given):
    """The library's own answer to each text, alone and without padding."""
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    said = []
    with torch.no_grad():
        if not model.text_to_text:
            own = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            for i in range(len(given.lengths)):
                said.append(own(input_ids=given.batch([i])["input_ids"]).logits)
            return torch.cat(said)
        own = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        places = [model.tokenizer.convert_tokens_to_ids(name) for name in model.label_names]
        start = torch.tensor([[own.config.decoder_start_token_id]])
        for i in range(len(given.lengths)):
            logits = own(input_ids=given.batch([i])["input_ids"], decoder_input_ids=start, use_cache=False).logits
            said.append(logits[:, 0, places])
        return torch.cat(said)


def check(folder, model, rows):
    """A batch answers as each text alone, and as the library does."""
    (alone, batch), given = answers(model, rows)
    assert alone["logits"].std(0).min() > 1e-2
    for name, values in alone.items():
        torch.testing.assert_close(
            batch[name], values, rtol=0, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
        )
        assert values.isfinite().all()
    torch.testing.assert_close(alone["logits"], the_librarys(folder, model, given), rtol=0, atol=1e-4)
    return alone, given


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_family(tmp_path, kind, name):
    folder = write_family(tmp_path / "model", kind, name)
    forget_notices()
    model = load_model(folder, task_of(kind == "text-to-text")).eval()
    assert not [one for one in notices() if one["kind"] != "full-attention"]
    model.add_heads()
    model.check_cost()
    found, given = check(folder, model, texts())
    assert int(given.lengths.max()) == min(60, model.tokenizer.model_max_length)
    flops = found["flops"]
    # Whole numbers, more for longer texts: counted, not estimated.
    assert (flops.diff() > 0).all() or name in ("longt5", "pegasus_x", "led", "longformer")
    assert (flops > 0).all()
    assert (flops - flops.round()).abs().max() < 1e-3
    assert not [one for one in notices() if one["kind"] == "estimated-flops"]


# How published decoders pad: what is changed of config.json and of the tokenizer, and the token that is chosen.
PADS = {
    "config.json names none": ({"pad_token_id": None}, {}, "<pad>"),
    "config.json names -1": ({"pad_token_id": -1}, {}, "<pad>"),
    "nothing names one": ({"pad_token_id": None}, {"pad_token": None}, "<s>"),
    "nothing names one, and no text has an end": ({"pad_token_id": None}, {"pad_token": None, "ends": False}, "</s>"),
    "the tokenizer pads with the end of text": ({"pad_token_id": None}, {"pad_token": "</s>"}, "<s>"),
    "the tokenizer pads with a token that the model lacks": ({"pad_token_id": None}, {"pad_token": "[PAD]"}, "<s>"),
    "config.json alone names one": ({"pad_token_id": 3}, {"pad_token": None}, "</s>"),
    "config.json names another": ({"pad_token_id": 3}, {}, "</s>"),
    "both name the end of text": ({"pad_token_id": 3}, {"pad_token": "</s>"}, "</s>"),
    "the tokenizer pads on the left": ({}, {"padding_side": "left"}, "<pad>"),
}


# A token that is named, one that is not, and padding on the left; which token it is does not hang on the family.
FEW_PADS = ["both name the end of text", "nothing names one", "the tokenizer pads on the left"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("gpt2", "llama") for how in PADS),
        *((name, how) for name in ("bloom", "falcon", "gpt_neox", "mixtral", "qwen3") for how in FEW_PADS),
    ],
)
def test_padding_of_decoders(tmp_path, name, how):
    change, tokenizer, token = PADS[how]
    folder = write_family(tmp_path / "model", "decoder", name, change, tokenizer)
    forget_notices()
    model = load_model(folder, task_of(False)).eval()
    model.add_heads()
    check(folder, model, texts())
    assert model.tokenizer.pad_token == token
    assert model.backbone.config.pad_token_id == model.tokenizer.pad_token_id == model.reader.tokenizer.pad_token_id
    told = [one["text"] for one in notices() if one["kind"] == "padding-token"]
    agree = how in ("both name the end of text", "the tokenizer pads on the left", "config.json alone names one")
    assert len(told) == (not agree)
    assert all(token in one for one in told)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_texts_that_end_with_the_padding_token(tmp_path, name):
    """It may be the end of text, which a text can hold, or be nothing but."""
    tokenizer = {"pad_token": "</s>", "ends": False}
    folder = write_family(tmp_path / "model", "decoder", name, {"pad_token_id": 3}, tokenizer)
    model = load_model(folder, task_of(False)).eval()
    (alone, batch), given = answers(model, [*texts(4, ending="</s></s>"), ("</s>",), ("a</s>b",)])
    torch.testing.assert_close(batch["logits"], alone["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(alone["logits"], the_librarys(folder, model, given), rtol=0, atol=1e-4)


def test_a_padding_token_that_is_a_word(tmp_path):
    """A finished model is refused; one that is to be trained takes the tokenizer's."""
    folder = write_family(tmp_path / "model", "decoder", "llama", {"pad_token_id": 9})
    with pytest.raises(InputError, match=r"'f' \(9\).*'<pad>' \(0\)"):
        load_model(folder, task_of(False))
    model = load_model(folder, task_of(False), fine_tune=True).eval()
    assert (model.backbone.config.pad_token_id, model.tokenizer.pad_token) == (0, "<pad>")
    bare = write_family(tmp_path / "bare", "decoder", "llama", {"pad_token_id": None}, BARE)
    with pytest.raises(InputError, match="pad_token_id"):
        load_model(bare, task_of(False))


BARE = {"ends": False} | {f"{name}_token": None for name in ("pad", "unk", "bos", "eos", "cls")}


MASKED = ["config.json names none", "nothing names one", "config.json names another"]
MASKED += ["the tokenizer pads with a token that the model lacks"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("bert", "xlnet", "t5") for how in MASKED),
        *((name, how) for name in ("roberta", "bart", "m2m_100") for how in MASKED[1:3]),
    ],
)
def test_padding_of_those_that_go_by_the_mask(tmp_path, name, how):
    """Which token pads is of no matter to them, but there must be one."""
    change, tokenizer, _ = PADS[how]
    kind = "encoder" if name in ENCODERS else "text-to-text"
    if change["pad_token_id"] is None and name not in ("xlnet", "t5"):
        # Their positions, or the library's default, need one.
        change = {}
    folder = write_family(tmp_path / "model", kind, name, change, tokenizer)
    model = load_model(folder, task_of(kind == "text-to-text")).eval()
    model.add_heads()
    check(folder, model, texts())
    assert 0 <= model.tokenizer.pad_token_id < WORDS


REFUSED = {
    "canine": PLAIN,
    "convbert": {**SMALL, "conv_kernel_size": 3},
    "fnet": PLAIN,
    "funnel": {
        "block_sizes": [1, 1, 1],
        "num_decoder_layers": 1,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 64,
    },
    "mobilebert": {**SMALL, "true_hidden_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    "yoso": PLAIN,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_family(tmp_path, monkeypatch, name):
    """By its name, before its weights are read; it would be found out, too, if its name were not known."""
    monkeypatch.setitem(ENCODERS, name, REFUSED[name])
    folder = write_family(tmp_path / "model", "encoder", name)
    for fine_tune in (True, False):
        with pytest.raises(InputError, match=f"'{name}' model.*not supported"):
            load_model(folder, task_of(False), fine_tune=fine_tune)
    monkeypatch.delitem(families.REFUSED, name)
    with pytest.raises(InputError, match=f"'{name}' model.*(depend on what else|cannot be run on a batch)"):
        load_model(folder, task_of(False))


def test_a_family_that_is_not_listed(tmp_path, monkeypatch):
    """It is tried when it is loaded."""
    monkeypatch.setitem(ENCODERS, "nomic_bert", PLAIN)
    folder = write_family(tmp_path / "model", "encoder", "nomic_bert")
    assert "nomic_bert" not in families.CHECKED | families.REFUSED.keys()
    check(folder, load_model(folder, task_of(False)).eval(), texts())


def test_attention_in_blocks(tmp_path):
    """It would depend on the batch, here with texts that are long enough for it."""
    folder = write_family(tmp_path / "model", "encoder", "big_bird", {}, {"model_max_length": 256})
    model = load_model(folder, task_of(False)).eval()
    given = encode_examples(model.reader, model.task, texts(most=200), None, 256)
    rows = list(range(6))
    with torch.no_grad():
        batch = model(given.batch(rows)).logits
        alone = torch.cat([model(given.batch([row])).logits for row in rows])
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-4)
    assert model.backbone.config.attention_type == "original_full"


def test_experts_are_counted():
    """Each token costs the experts that it is sent to, not all of them."""
    from transformers import AutoConfig

    def slope(**own):
        config = AutoConfig.for_model("qwen3_moe", vocab_size=WORDS, num_labels=3, **{**DECODERS["qwen3_moe"], **own})
        few, many = flops_by_length(config, torch.tensor([1, 2])).tolist()
        return many - few

    # Three matrices of 32 x 16 in each of two layers.
    one = 2 * 3 * 32 * 16 * 2
    assert slope(num_experts_per_tok=2) - slope(num_experts_per_tok=1) == one
    # The router alone grows with the number of experts.
    assert slope(num_experts=8) - slope(num_experts=4) == 2 * 32 * 4 * 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_decoders_are_counted_without_weights(monkeypatch, name):
    """Those that are too large to be built on the CPU, too."""
    from transformers import AutoConfig

    monkeypatch.setattr("elang.backends.flops._CPU_WEIGHTS", 0)
    config = AutoConfig.for_model(name, vocab_size=WORDS + 1, num_labels=3, **DECODERS[name])
    forget_notices()
    check_cost(config)
    assert not notices()


def test_what_cannot_be_counted_is_estimated(monkeypatch):
    from transformers import LlamaConfig

    def broken(*args, **options):
        raise RuntimeError("no such kernel")

    config = LlamaConfig(vocab_size=WORDS, **{**LLAMA, "intermediate_size": 80})
    monkeypatch.setattr("elang.backends.flops._count", broken)
    forget_notices()
    check_cost(config)
    assert "estimated as twice its weights" in notices()[0]["text"]
    flops = flops_by_length(config, torch.tensor([1, 10]))
    assert flops[1] == 10 * flops[0] > 0


@pytest.mark.parametrize(("kind", "name"), [("encoder", "xlnet"), ("decoder", "gpt2"), ("decoder", "qwen3_moe")])
def test_from_training_to_prediction(tmp_path, files, kind, name):
    """Without a padding token in config.json; few inputs and many are answered alike, and by the library, too."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from elang import JointPredictor

    base = write_family(tmp_path / "base", kind, name, {"pad_token_id": None, "problem_type": "multi_label"})
    data = ["--data.train", str(files[0]), "--data.validation", str(files[1]), "--data.routing_fraction", "0.25"]
    fit = ["--trainer.max_steps", "2", *data, *FAST]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    super_, swift, records = (str(tmp_path / part) for part in ("super", "swift", "super.parquet"))
    assert main(["fit", "--model.model", base, "--model.output", super_, *fit, *root]) == 0
    assert main(["score", "--model.model", super_, "--model.output", records, *data, *QUIET, *root]) == 0
    args = ["--model.model", base, "--model.layers", "1", "--model.super_records", records, "--model.output", swift]
    assert main(["fit", "--model", "SwiftModule", *args, *fit, *root]) == 0
    config = json.loads(Path(swift, "config.json").read_text())
    assert kind == "encoder" or config["pad_token_id"] == AutoTokenizer.from_pretrained(swift).pad_token_id is not None
    assert config["problem_type"] == "single_label_classification"
    rows = [row for (row,) in texts(5)]
    predictor = JointPredictor(swift, super_, 0.0, "router")
    many, few = predictor(rows), [predictor([row])[0] for row in rows]
    assert [one.label for one in many] == [one.label for one in few]
    assert [one.score for one in many] == pytest.approx([one.score for one in few], abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(super_)
    own = AutoModelForSequenceClassification.from_pretrained(super_).eval()
    said = own(**tokenizer(rows, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
    alone = JointPredictor(swift, super_, "-inf", "router")(rows)
    assert [one.label for one in alone] == [own.config.id2label[i] for i in said]


def tables():
    """The tables of docs/models.md: the families that are right, and those that are refused."""
    lines = ["| kind | `model_type` | padding |", "|---|---|---|"]
    lines += [f"| {kind} | `{name}` | {'left' if name in families._LEFT else 'right'} |" for kind, name in ALL]
    refused = ["| `model_type` | why |", "|---|---|"]
    refused += [f"| `{name}` | {why} |" for name, why in sorted(families.REFUSED.items())]
    return "\n".join(lines), "\n".join(refused)


def test_the_tables_in_the_docs():
    text = DOCS.read_text("utf-8")
    assert all(table in text for table in tables()), "run PYTHONPATH=tests python tests/backends/test_families.py"
    assert {name for _, name in ALL} == families.CHECKED
    assert not families.CHECKED & families.REFUSED.keys()
    assert len(ENCODERS) >= 14
    assert len(DECODERS) >= 12
    assert len(TEXT_TO_TEXT) >= 12


def write_tables():
    text, parts = DOCS.read_text("utf-8"), iter(tables())
    DOCS.write_text(re.sub(r"(?m)^\| [^\n]*\n\|---[^\n]*\n(\|[^\n]*\n)*", lambda _: next(parts) + "\n", text), "utf-8")


WORD_LEVEL = ["a", "and", "bad", "film", "good", "is", "plot", "the"]


@pytest.mark.parametrize("declared", ["PreTrainedTokenizerFast", "TokenizersBackend", "own", None])
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("qwen2", "Qwen2TokenizerFast"),
        ("qwen3", "Qwen2Tokenizer"),
        ("gemma2", "GemmaTokenizerFast"),
        ("gpt2", "GPT2Tokenizer"),
        ("roberta", "RobertaTokenizerFast"),
        ("llama", "LlamaTokenizerFast"),
    ],
)
def test_a_tokenizer_reads_as_its_file_does(tmp_path, kind, own, declared):
    """For some families the library builds another tokenizer from the words, to which nearly all texts are the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    written = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORD_LEVEL])}, unk_token="<unk>"))
    written.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {f"{name}_token": token for token, name in SPECIAL.items()}
    PreTrainedTokenizerFast(tokenizer_object=written, **names).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    path = tmp_path / "tokenizer_config.json"
    about = json.loads(path.read_text()) | {"tokenizer_class": own if declared == "own" else declared}
    path.write_text(json.dumps({name: value for name, value in about.items() if value is not None}))
    forget_notices()
    found = load_tokenizer(str(tmp_path), {})
    text = "the film is good and the plot is bad"
    assert found(text, add_special_tokens=False)["input_ids"] == written.encode(text, add_special_tokens=False).ids
    assert found.pad_token == "<pad>"
    told = [one["kind"] for one in notices()]
    assert told == [] if declared not in ("own", None) else set(told) <= {"tokenizer-as-written"}


def test_options_of_a_tokenizers_class_are_kept(base_model, tmp_path):
    """What the file pads and cuts texts to, and whether capitals are kept, is no other way to split them."""
    folder = tmp_path / "model"
    shutil.copytree(base_model, folder)
    config = folder / "tokenizer_config.json"
    changed = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    forget_notices()
    assert type(load_tokenizer(str(folder), {})).__name__ == "BertTokenizer"
    assert not notices()
    # Nothing to compare.
    about = json.loads((folder / "tokenizer.json").read_text())
    special = [token["content"] for token in about["added_tokens"]]
    about["model"]["vocab"] = {word: i for word, i in about["model"]["vocab"].items() if word in special}
    (folder / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="it knows 0 tokens"):
        load_tokenizer(str(folder), {})


if __name__ == "__main__":
    write_tables()
