"""The trie of the answers' tokens: where they branch, and which tokens are forced."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from elang.data.batches import IGNORE_INDEX
from elang.errors import InputError


class _Tensors:
    """A dataclass of tensors, all on one device."""

    def to(self, device: torch.device) -> Self:
        """Itself on ``device``: copied if it is on another."""
        tensors = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        if tensors[0].device == device:
            return self
        # Even if first needed in inference: a later training saves these tensors for its backward pass.
        with torch.inference_mode(False):
            return type(self)(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class AnswerTrie(_Tensors):
    """Where answers branch, as indices."""

    paths: Tensor  # decoder inputs after the start token, int64 (P, T - 1), padded with any token
    node: Tensor  # path and position of each branching node, int64 (M, 2); the first is the root
    branches: Tensor  # tokens to choose from at each node, int64 (M, K), padded with -1
    taken: Tensor  # which (node, branch) lie on each answer's path, float32 (C, M * K)

    @classmethod
    def of(cls, answers: list[list[int]]) -> "AnswerTrie":
        """Build it; raises InputError for equal answers, one that begins with another, or a single one."""
        nodes: dict[tuple[int, ...], list[int]] = {}
        for answer in answers:
            for t, token in enumerate(answer):
                branches = nodes.setdefault(tuple(answer[:t]), [])
                if token not in branches:
                    branches.append(token)
        if len({tuple(a) for a in answers}) < len(answers) or any(tuple(a) in nodes for a in answers):
            raise InputError(
                f"Two answers have the same tokens, or one begins with another: their tokens are {answers}. Give "
                "other answers (--data.answers)."
            )
        branching = sorted((prefix for prefix, b in nodes.items() if len(b) > 1), key=len)
        if not branching:
            raise InputError(f"There must be at least 2 answers to choose from, but their tokens are {answers}.")
        leaves = [p for p in branching if not any(q != p and q[: len(p)] == p for q in branching)]
        width, most = max(map(len, leaves)), max(len(nodes[p]) for p in branching)
        paths = torch.tensor([[*p, *([0] * (width - len(p)))] for p in leaves], dtype=torch.int64)
        places = [[next(i for i, e in enumerate(leaves) if e[: len(p)] == p), len(p)] for p in branching]
        choices = torch.tensor([nodes[p] + [-1] * (most - len(nodes[p])) for p in branching])
        taken = torch.zeros(len(answers), len(branching), most)
        for c, tokens in enumerate(answers):
            for m, prefix in enumerate(branching):
                if tuple(tokens[: len(prefix)]) == prefix:
                    taken[c, m, nodes[prefix].index(tokens[len(prefix)])] = 1
        return cls(paths.reshape(len(leaves), width), torch.tensor(places), choices, taken.flatten(1))

    @property
    def decoder(self) -> tuple[int, int]:
        """How many paths the decoder runs over, and how many tokens each has."""
        return self.paths.shape[0], self.paths.shape[1] + 1

    def label_logits(self, logits: Tensor) -> Tensor:
        """Turn the decoder's logits over the paths, ``(B, P, T, V)``, into one for each answer, ``(B, C)``."""
        return self.node_logits(self.at_nodes(logits))

    def node_logits(self, logits: Tensor) -> Tensor:
        """The same from the logits at the branching nodes, ``(B, M, V)``."""
        z = logits.float()
        return self.answers(z.gather(-1, self.branches.clamp_min(0).expand(len(z), -1, -1)))

    def at_nodes(self, values: Tensor) -> Tensor:
        """Select the branching nodes, ``(B, M, ...)``, from ``(B, P, T, ...)``."""
        return values[:, self.node[:, 0], self.node[:, 1]]

    def answers(self, z: Tensor) -> Tensor:
        """One logit for each answer, ``(B, C)``, from the decoder's logits of each node's branches, ``(B, M, K)``."""
        z = z.masked_fill(self.branches < 0, -torch.inf)
        z = torch.cat([z[:, :1], z[:, 1:].log_softmax(-1)], 1)
        # Autocast would round the factors and the product.
        with torch.autocast(z.device.type, enabled=False):
            return z.masked_fill(self.branches < 0, 0.0).flatten(1) @ self.taken.T


def padded_answers(tokens: list[list[int]]) -> Tensor:
    """Each answer's tokens as a row of targets, int64 ``(C, T)``."""
    return pad_sequence(list(map(torch.tensor, tokens)), batch_first=True, padding_value=IGNORE_INDEX)


def nearest_answers(values: Tensor, target: Tensor) -> Tensor:
    """The places, int64 ``(B,)``, of the answers whose ``values`` ``(C,)`` are nearest to targets ``(B,)``."""
    return (values[None] - target[:, None].to(values)).abs().argmin(-1)


def mean_value(logits: Tensor, values: Tensor) -> Tensor:
    """A regression's answer: the mean of ``values`` ``(C,)`` by the answers' logits ``(B, C)``, float32 ``(B, 1)``."""
    return (logits.softmax(-1) * values).sum(-1, keepdim=True)


@dataclass(frozen=True)
class AnswerTree(_Tensors):
    """The tokens of a trie that a decoder has to read, each once: those up to the last branching node of each path."""

    tokens: Tensor  # int64 (N,)
    depth: Tensor  # how many tokens lead to each, itself included, int64 (N,)
    sees: Tensor  # which tokens each may attend to: itself and those that lead to it, bool (N, N)
    place: Tensor  # of each branching node: 0 for the root, or 1 more than that of its last token, int64 (M,)

    @classmethod
    def of(cls, trie: AnswerTrie) -> "AnswerTree":
        """The tree of a trie."""
        branching = [tuple(trie.paths[path, :size].tolist()) for path, size in trie.node.tolist()]
        prefixes = sorted({p[: n + 1] for p in branching for n in range(len(p))}, key=len)
        place = {prefix: i + 1 for i, prefix in enumerate(prefixes)} | {(): 0}
        sees = [[q == p[: len(q)] for q in prefixes] for p in prefixes]
        return cls(
            torch.tensor([p[-1] for p in prefixes], dtype=torch.int64),
            torch.tensor([len(p) for p in prefixes], dtype=torch.int64),
            torch.tensor(sees, dtype=torch.bool).reshape(len(prefixes), len(prefixes)),
            torch.tensor([place[p] for p in branching]),
        )
