"""What a training computes and holds, from its settings alone: parameters, operations, bytes.

Symbols: N parameters, D training tokens, L layers, C width, T context, V vocabulary, B sequences in a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptmodel.config import ModelConfig

_FLOAT32, _BFLOAT16 = 4, 2
_BACKWARD = 2  # a matrix product costs two of its size on the way back: for its input and for its weights
_ACTIVATION_BYTES = (
    34  # per token, layer and unit of width, in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2)
)
_RESIDUAL_BYTES = 8  # and, per token, layer and unit of width, the residual stream in float32 at two places
_BLOCK = 256  # queries at once in `gptmodel.attention`, which this module cannot ask: it imports torch
_LOGITS_BYTES = 1 << 27  # that are there at one time on a processor, as `gptmodel.padded_head` takes them
_GPU_ROWS, _TILE = 8192, 128  # and on a GPU: rows of logits at one time, and what the vocabulary is padded to
_SOFTMAX = 4  # float32 tensors of their size that softmax and its gradient hold at once, where nothing is compiled
_FRAMEWORK = 400_000_000  # Python and libraries in a training process on a processor: what seven took beyond the rest
_SUMMED = 4  # gradients of the token table at the end of the backward pass, as measured: head and lookup are summed


@dataclass(frozen=True)
class Parameters:
    """Trainable numbers; the tied head counts once, as the token table."""

    tokens: int
    positions: int
    blocks: int
    """All layers and the last norm."""

    @property
    def total(self) -> int:
        return self.tokens + self.positions + self.blocks

    @property
    def without_embeddings(self) -> int:
        """Neither tokens nor positions: the N of Kaplan et al. 2020."""
        return self.blocks


@dataclass(frozen=True)
class Flops:
    """Floating-point operations to train on one token: forward and backward, a multiplication and an addition each."""

    matrices: int
    """Products with weights: 72 L C^2."""
    attention: int
    """Scores and weighted sums over the whole context: 12 L T C. What a causal kernel saves is counted."""
    head: int
    """Logits: 6 V C."""

    @property
    def exact(self) -> int:
        """All matrix products. Norms, activations and the optimizer are left out, as everywhere: under a percent."""
        return self.matrices + self.attention + self.head


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while it trains; on a processor, of one process."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments; Muon keeps one for the blocks' matrices."""
    activations: int
    """Of one micro-batch, kept for the way back."""
    logits: int
    """Of some rows at a time, which become their own gradient."""
    head: int
    """Gradient of the token table that the loss makes on the way."""
    casts: int
    """bfloat16 copies of the weights, under autocast."""
    copies: int
    """Of weights and moments while a checkpoint is written; in the host's memory where there is a GPU."""
    framework: int
    """Python and its libraries; on a GPU a few hundred MB more than is counted."""
    summed: int
    """Gradients of the token table while those of head and lookup are summed."""
    gathered: int
    """Whole weights of the root's group and of two others, of a model that is cut up between processes; the root's once
    more as they travel, and their gradients after them."""
    accumulates: bool
    """There is more than one micro-batch in a step, so that gradients lie beside activations."""

    @property
    def total(self) -> int:
        """The most at one time: activations and all gradients are not there together, but where a step accumulates."""
        always = self.weights + self.optimizer + self.copies + self.framework
        forward = self.activations + self.logits + self.head + self.casts + self.gathered
        backward = self.gradients + self.summed + self.gathered
        return always + max(forward + (self.gradients if self.accumulates else 0), backward)


def count_parameters(model: ModelConfig) -> Parameters:
    """Of a GPT of this shape: `GPT.num_parameters` says the same of a built one."""
    C = model.n_embd
    return Parameters(
        tokens=model.vocab_size * C,
        positions=model.context_length * C,
        blocks=model.n_layer * (12 * C + 13) * C + 2 * C,
    )


def flops_per_token(model: ModelConfig) -> Flops:
    """Matrix products of a step, counted one by one and divided by its tokens."""
    L, C, T, V = model.n_layer, model.n_embd, model.context_length, model.vocab_size
    both_ways = 1 + _BACKWARD
    return Flops(
        matrices=both_ways * L * 2 * C * (3 * C + C + 4 * C + 4 * C),  # qkv, proj, up, down
        attention=both_ways * L * 2 * (T * C + T * C),
        head=both_ways * 2 * V * C,
    )


def rule_of_six(n_params: int) -> int:
    """6N, the rule of thumb for operations a token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
    return 6 * n_params


def kept_probabilities(context_length: int) -> int:
    """Attention probabilities of one head and sequence that `gptmodel.attention` keeps for the way back."""
    blocks, rest = divmod(context_length, _BLOCK)
    return _BLOCK**2 * blocks * (blocks + 1) // 2 + rest * context_length


def memory(
    model: ModelConfig,
    micro_batch_size: int,
    *,
    bfloat16: bool,
    on_cpu: bool = False,
    muon: bool = False,
    accumulates: bool = False,
    compiled: bool = False,
    parts: int = 1,
) -> Memory:
    """Estimate for a device that holds the whole model, or one of so many `parts` of its weights and moments.

    Of parts, gradients are whole while a step's micro-batches add up (`gptmodel.sharding`).

    Attention stores its matrix only in bfloat16 on a processor, without dropout. Activations by Korthikanti et al. 2022
    without that matrix, and twice that where all is float32. On a GPU the caching allocator's waste and the framework's
    few hundred MB come on top.
    """
    found = count_parameters(model)
    N, L, V = found.total, model.n_layer, model.vocab_size
    tokens = micro_batch_size * model.context_length
    a_place = _ACTIVATION_BYTES + _RESIDUAL_BYTES if bfloat16 else 2 * _ACTIVATION_BYTES
    keeps = on_cpu and bfloat16 and not model.dropout
    kept = micro_batch_size * model.n_head * kept_probabilities(model.context_length) if keeps else 0
    by_muon = L * 12 * model.n_embd**2 if muon else 0
    number = _BFLOAT16 if bfloat16 else _FLOAT32
    table = _FLOAT32 * found.tokens
    optimizer = _FLOAT32 * (2 * N - by_muon)
    root = _FLOAT32 * (N - L * (12 * model.n_embd + 9) * model.n_embd)
    feed_forward = number * (8 * model.n_embd + 5) * model.n_embd
    gradients = _FLOAT32 * N if parts == 1 or accumulates else _FLOAT32 * N // parts + root
    return Memory(
        weights=_FLOAT32 * N // parts,
        gradients=gradients,
        optimizer=optimizer // parts,
        activations=L * (tokens * model.n_embd * a_place + _BFLOAT16 * kept),
        logits=_logits_on_cpu(tokens, V, number) if on_cpu else _logits_on_gpu(tokens, V, number, compiled),
        head=table + (_BFLOAT16 * found.tokens if bfloat16 else 0),
        casts=_BFLOAT16 * N if bfloat16 and parts == 1 else 0,  # the groups are gathered as such
        copies=_FLOAT32 * N + optimizer if on_cpu else 0,
        framework=_FRAMEWORK if on_cpu else 0,
        summed=_SUMMED * table,
        gathered=2 * root + 2 * feed_forward if parts > 1 else 0,
        accumulates=accumulates,
    )


def _logits_on_cpu(tokens: int, vocabulary: int, number: int) -> int:
    """Bytes of one chunk, in numbers of so many bytes: its softmax is taken a few rows at a time."""
    chunks = -(-tokens // max(1, _LOGITS_BYTES // (vocabulary * number)))
    return -(-tokens // chunks) * vocabulary * number


def _logits_on_gpu(tokens: int, vocabulary: int, number: int, compiled: bool) -> int:
    """Bytes of one chunk, and of its gradient; where nothing is compiled, of what comes before that in float32."""
    padded = vocabulary + -vocabulary % _TILE
    return min(tokens, _GPU_ROWS) * padded * (number + (number if compiled else _SOFTMAX * _FLOAT32))


def largest_micro_batch(
    model: ModelConfig, device_bytes: float, *, bfloat16: bool, compiled: bool = False, parts: int = 1
) -> int:
    """The most sequences whose estimate stays within a GPU's bytes; 0 where not even one does."""

    def fits(micro_batch_size: int) -> bool:
        held = memory(model, micro_batch_size, bfloat16=bfloat16, accumulates=True, compiled=compiled, parts=parts)
        return held.total <= device_bytes

    low, high = 0, 1
    while fits(high) and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
