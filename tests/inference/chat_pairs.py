"""Tiny pairs of random language models that chat, for tests of `elang serve --api openai`."""

import torch
from backends.test_prompts import write_llama
from data.test_prompts import CHATML, make_tokenizer

from elang.backends.loading.checkpoints import save_model
from elang.backends.loading.load import load_model
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask

TASK = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="{text}", label_words="chat")
TOKENS = 12
# The pair's router keeps prompts of up to 30 tokens, so that the first is the Swift's and the second the Super's.
EASY, HARD = "film", "a long plot, and then a longer one, which nobody has understood at all"
_KEPT = 30.5


def write_chat_pair(root, score="prompt_router", task=TASK, context=400, max_length=128):
    """The folders of a Swift and a Super. The score of the router is the log of a prompt's tokens."""
    base = write_llama(root / "base", make_tokenizer("bytes", chat_template=CHATML, model_max_length=context))
    paths = {}
    for name in ("swift", "super"):
        model = load_model(base, task, generate=True).eval()
        if name == "super":
            torch.manual_seed(7)
            with torch.no_grad():
                for weight in model.backbone.parameters():
                    weight += 0.1 * torch.randn_like(weight)
        else:
            model.add_heads()
            for head in model.routers.values():
                head.scale.fill_(1)
                head.weight[0] = 1
                head.fitted.fill_(1)
        threshold = {"prompt_router": float(torch.tensor(_KEPT).log()), "nll_mean": 1.35}
        entries = {key: {"1-SE": {"threshold": value}, "99%": {"threshold": -9.0}} for key, value in threshold.items()}
        manifest = Manifest([], task.plain(), score, max_length=max_length, max_target_length=TOKENS)
        if name == "swift":
            manifest.thresholds = entries
        paths[name] = root / name
        save_model(model, paths[name], manifest)
    return paths
