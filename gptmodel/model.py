"""GPT-2, from token ids to logits (Radford et al. 2019): pre-norm blocks, learned positions, tied head.

Shapes: B batch, T tokens, C width, H heads, D head width (C = H * D), V vocabulary, S slots of the cache.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from gptmodel.attention import causal_attention
from gptmodel.config import ModelConfig
from gptmodel.errors import DataError
from gptmodel.few_rows import Linear
from gptmodel.loss import TokenScores, linear_cross_entropy, token_scores

_INIT_STD = 0.02


class KVCache:
    """Keys and values of the tokens read so far, so that the next token costs one position and not all of them.

    One preallocated [B, H, capacity, D] pair a layer, in the dtype that the first keys have. `padding_B` says how
    many slots at the left of each row hold no token; those are never attended to, and positions count after them.
    """

    def __init__(self, capacity: int, padding_B: Tensor | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        self.padding_B = padding_B
        self._layers: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the new keys and values of a layer; return all that it now holds."""
        if layer == len(self._layers):
            B, H, _, D = k_BHTD.shape
            self._layers.append((k_BHTD.new_empty(B, H, self.capacity, D), v_BHTD.new_empty(B, H, self.capacity, D)))
        k_BHSD, v_BHSD = self._layers[layer]
        end = self.length + k_BHTD.shape[2]
        k_BHSD[:, :, self.length : end] = k_BHTD
        v_BHSD[:, :, self.length : end] = v_BHTD
        return k_BHSD[:, :, :end], v_BHSD[:, :, :end]

    def take(self, rows: list[int]) -> None:
        """Hold these rows instead, in this order: some may be left out, some be there several times."""
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows]
        self._layers = [(k_BHSD[rows], v_BHSD[rows]) for k_BHSD, v_BHSD in self._layers]

    def positions(self, T: int, device: torch.device) -> Tensor:
        """Positions of the next T tokens, [T], or [B, T] where rows are padded differently."""
        slots_T = torch.arange(self.length, self.length + T, device=device)
        return slots_T if self.padding_B is None else (slots_T - self.padding_B[:, None]).clamp(min=0)

    def mask(self, T: int, device: torch.device) -> Tensor | None:
        """Which slots the next T tokens may see, bool [T, S] or [B, 1, T, S]; None where all, or plainly causal."""
        if self.padding_B is None and (T == 1 or self.length == 0):
            return None
        slots_S = torch.arange(self.length + T, device=device)
        queries_T1 = slots_S[self.length :, None]
        causal_TS = slots_S <= queries_T1
        if self.padding_B is None:
            return causal_TS
        token_BTS = slots_S >= self.padding_B[:, None, None]
        # a padding slot sees itself: a row of nothing but -inf would be nan
        return ((causal_TS & token_BTS) | (slots_S == queries_T1))[:, None]


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, config.n_head, config.dropout
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x_BTC.shape
        qkv_BTC3 = self.qkv(x_BTC)
        if self._in_blocks(qkv_BTC3) and cache is None:
            return cast(Tensor, self.residual_dropout(self.proj(causal_attention(qkv_BTC3, self.n_head))))
        qkv = qkv_BTC3.view(B, T, 3, self.n_head, C // self.n_head)
        q_BHTD, k_BHSD, v_BHSD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            k_BHSD, v_BHSD = cache.extend(self.layer, k_BHSD, v_BHSD)
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BHSD,
            v_BHSD,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
        )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        return cast(Tensor, self.residual_dropout(self.proj(y_BTC)))

    def _in_blocks(self, qkv: Tensor) -> bool:
        """Whether our own attention is the faster one: half the time in bfloat16 on a processor, no gain in float32."""
        dropping = self.training and self.dropout > 0
        return qkv.requires_grad and qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu" and not dropping


class FeedForward(nn.Module):
    """Widen four times, GELU, narrow."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.down = Linear(4 * config.n_embd, config.n_embd)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return cast(Tensor, self.residual_dropout(self.down(self.gelu(self.up(x_BTC)))))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTC: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), cache, mask)
        return cast(Tensor, x_BTC + self.mlp(self.ln_2(x_BTC)))


def _table(rows: int, width: int) -> nn.Embedding:
    """Not yet filled: torch would do it at once, and on the meta device import its compiler for that, for seconds."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class GPT(nn.Module):
    """The model. Its initial weights depend on the seed alone: they are drawn on the CPU, whatever the device.

    Without a seed, one is drawn from torch's global CPU generator (`torch.manual_seed`). The output head is `wte`
    itself, so the state dict holds it once.
    """

    def __init__(self, config: ModelConfig, *, seed: int | None = None) -> None:
        super().__init__()
        if seed is None:
            seed = int(torch.randint(1 << 62, (), device="cpu"))
        self.config = config
        self.wte = _table(config.vocab_size, config.n_embd)
        self.wpe = _table(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self._init_weights(seed)

    @torch.no_grad()
    def _init_weights(self, seed: int) -> None:
        """GPT-2's: normal of 0.02, projections into the residual stream by 1/sqrt(2 * n_layer) less, biases 0."""
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                into_residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                std = _INIT_STD / math.sqrt(2 * self.config.n_layer) if into_residual else _INIT_STD
                parameter.copy_(torch.normal(0.0, std, parameter.shape, generator=generator, device="cpu"))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of the next token at each place; with targets their mean loss, a float32 scalar."""
        if targets_BT is not None:
            return self.loss(ids_BT, targets_BT)
        return self.logits(self.hidden(ids_BT, cache))

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, without ever holding all logits."""
        return linear_cross_entropy(self.hidden(ids_BT), self.wte.weight, targets_BT)

    def token_scores(self, ids_BT: Tensor, targets_BS: Tensor) -> TokenScores:
        """Loss, rank and top probability of the last S tokens of each row [B, S], for evaluation; no gradients.

        S may be less than T: a sliding window looks at its last tokens only, and the head is most of a small model.
        """
        with torch.no_grad():
            x_BSC = self.hidden(ids_BT)[:, ids_BT.shape[1] - targets_BS.shape[1] :]
            return token_scores(x_BSC, self.wte.weight, targets_BS)

    def logits(self, x_BTC: Tensor) -> Tensor:
        """The tied head: [B, T, C] to [B, T, V]."""
        return F.linear(x_BTC, self.wte.weight)

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """The last layer's normed output [B, T, C]; the cache, if any, goes on where it ended.

        Raises DataError when the tokens do not fit the context or the cache.
        """
        T = ids_BT.shape[1]
        seen, room = (0, self.config.context_length) if cache is None else (cache.length, cache.capacity)
        if seen + T > min(room, self.config.context_length):
            raise DataError(
                f"{seen + T} tokens do not fit a context of {min(room, self.config.context_length)}; "
                "give fewer, or take a model with a longer context"
            )
        if cache is None:
            positions_BTC, mask = self.wpe.weight[:T], None
        else:
            positions_BTC = self.wpe(cache.positions(T, ids_BT.device))
            mask = cache.mask(T, ids_BT.device)
        x_BTC = self.dropout(self.wte(ids_BT) + positions_BTC)
        for block in self.blocks:
            x_BTC = block(x_BTC, cache, mask)
        if cache is not None:
            cache.length += T
        return cast(Tensor, self.ln_f(x_BTC))

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Trainable numbers; the tied head counts once. Without embeddings: neither tokens nor positions."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total if embeddings else total - self.wte.weight.numel() - self.wpe.weight.numel()

    def flops_per_token(self, context_length: int = 0) -> int:
        """Floating-point operations to train on one token: 6N + 12 * L * H * D * T (PaLM, appendix B).

        Chowdhery et al. 2022, arXiv:2204.02311. N leaves out the positions, which are only looked up, and counts the
        token table once, for its work as the head. T is the model's context unless given. The T/2 that causality
        could save is counted, as is the convention.
        """
        T = context_length or self.config.context_length
        n = self.num_parameters() - self.wpe.weight.numel()
        return 6 * n + 12 * self.config.n_layer * self.config.n_embd * T
