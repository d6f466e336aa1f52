"""Decoder-only language models (Llama, Qwen, Gemma, GPT-2) that answer in the words of a task, after a prompt.

The language-model head chooses among the answers' tokens as :mod:`elang.backends.label_decoder` describes it: with
``z`` its logits, the logit of a label is ``z`` of its branch where the answers first differ, plus ``log_softmax`` of
``z`` over the branches at each later place where they do. Nothing is trained for that, so a model can also answer as it
was published.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.answer_trie import AnswerTree, AnswerTrie, mean_value, nearest_answers, padded_answers
from elang.backends.backend import Answer
from elang.backends.causal_passes import Shape, label_words_flops, paths_pass, tree_pass, words_law
from elang.backends.decoder_only import DecoderOnly
from elang.backends.flops import FlopsConvention, flops_key, tell_estimated
from elang.backends.packing import After, packed_logits
from elang.data.batches import IGNORE_INDEX
from elang.errors import InputError
from elang.tasks.kinds import answer_values
from elang.tasks.text_task import TextTask


class CausalLabelDecoder(DecoderOnly):
    """Any ``AutoModelForCausalLM`` as a model that answers in the words of a task.

    Where one answer begins another, each ends with the tokenizer's end of text.
    """

    smooths_labels = False
    answer_ids: Tensor
    values: Tensor

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, generate: bool = False) -> None:
        super().__init__(backbone, tokenizer, task)
        if generate:
            raise InputError(
                "A decoder-only model scores label words, it does not generate them: leave out --model.generate."
            )
        if not task.answers:
            raise InputError(
                f"A decoder-only model answers a {task.problem} task in words that all examples share: give the data's "
                "answers, or --data.label_words false for a head on its last token."
            )
        tokens = self.prompt.answer_tokens(tokenizer, task.answers)
        distinct = set(map(tuple, tokens))
        if len(distinct) == len(tokens) and any(a != b and a == b[: len(a)] for a in distinct for b in distinct):
            if tokenizer.eos_token_id is None:
                raise InputError(
                    f"One of the answers {task.answers[:8]} begins another, and the tokenizer has no end of text by "
                    "which to tell them apart. Give other answers (--data.answers)."
                )
            tokens = [[*ids, tokenizer.eos_token_id] for ids in tokens]
        self.trie = AnswerTrie.of(tokens)
        self.tree = AnswerTree.of(self.trie)
        self.prompt = self.prompt.reserving(max(map(len, tokens)))
        self.shape = Shape.of(backbone.config, self.trie, self.tree)
        self.register_buffer("answer_ids", padded_answers(tokens), persistent=False)
        if not task.kind.chooses:
            self.register_buffer("values", torch.tensor(answer_values(task.answers)), persistent=False)
        self.check_batches()

    @property
    def decoded(self) -> int:
        """About how many tokens of an input get logits over the vocabulary."""
        return self.shape.branching if self.shape.tree else self.shape.paths * (self.shape.tokens + 1)

    def add_heads(self) -> None:
        """Add a router head on the hidden state at the end of the prompt, untrained."""
        self.heads["router"] = self._router(len(self.label_names))

    def check_cost(self) -> None:
        """Count FLOPs before they are needed; a notice tells if they are estimated."""
        _, reason = words_law(flops_key(self.backbone.config), self.shape)
        tell_estimated(self.backbone.config, reason)

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch; the loss is over the tokens of the right answers, among the whole vocabulary."""
        ids, mask = self.prompts(inputs)
        self.trie, self.tree = self.trie.to(ids.device), self.tree.to(ids.device)
        if target is not None and not self.task.kind.chooses:
            target = nearest_answers(self.values, target)
        answers = None if target is None else self.answer_ids[target]
        logits, token_logits, pooled = self._run(ids, mask, answers, want_logits)
        loss = None
        if answers is not None and token_logits is not None:
            loss = F.cross_entropy(token_logits.float().flatten(0, 1), answers.flatten(), ignore_index=IGNORE_INDEX)
        if not self.task.kind.chooses:
            logits = mean_value(logits, self.values)
        return Answer(logits, self.predict(logits), loss, pooled)

    def _run(
        self, ids: Tensor, mask: Tensor, answers: Tensor | None, want_logits: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits of the labels, logits over the vocabulary for each token of ``answers``, and the last hidden state.

        The state is that at the prompt's end, if there are heads to read it.
        """
        # The router head is fitted after training.
        hidden = bool(self.heads) and not self.training
        chain = None if answers is None else answers[:, :-1].clamp_min(0)
        if self.packs and answers is not None:
            return *self._packed(ids, mask, answers, want_logits), None
        token_logits = None
        rows = self.split(ids, mask, self.room)
        if want_logits and self.shape.added and self.shape.tree:
            output = tree_pass(self.backbone, *rows, tree=self.tree, chain=chain, hidden=hidden)
            size = len(self.tree.place)
            logits = self.trie.node_logits(output.logits[:, :size])
            token_logits = output.logits[:, size:]
        elif want_logits and self.shape.added:
            output, after = paths_pass(self.backbone, ids, mask, self.trie.paths, hidden)
            logits = self.trie.label_logits(after)
            token_logits = None if chain is None else self.after(ids, mask, chain).logits
        else:
            output = self.run(rows, chain, output_hidden_states=hidden)
            token_logits = output.logits
            logits = token_logits.new_zeros(len(ids), len(self.task.answers), dtype=torch.float32)
            if want_logits:
                logits = self.trie.node_logits(token_logits[:, :1])
        pooled = output.hidden_states[-1][:, rows.ids.shape[1] - 1].detach() if hidden else None
        return logits, token_logits, pooled

    def _packed(self, ids: Tensor, mask: Tensor, answers: Tensor, want_logits: bool) -> tuple[Tensor, Tensor]:
        """The first two of :meth:`_run`, of prompts that share rows."""
        tree, size = (self.tree, len(self.tree.place)) if want_logits else (None, 0)
        both = packed_logits(self.backbone, ids, mask, After.of(tree, answers))
        logits = both.new_zeros(len(ids), len(self.task.answers), dtype=torch.float32)
        return self.trie.node_logits(both[:, :size]) if want_logits else logits, both[:, size:]

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input: the prompt without what all share, the tree of answers after it, and the head."""
        lengths, shared = self.counted(inputs)
        flops = label_words_flops(self.backbone.config, lengths, self.shape, convention, shared)
        return {"flops": flops + self._head_flops("router")}

    def probe(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits of the labels, ``(B, C)``."""
        return self._run(ids, mask, None, True)[0]
