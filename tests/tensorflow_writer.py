"""Writes a small GPT-2 as OpenAI did, with TensorFlow itself: run by a test, in an environment of its own.

python tests/tensorflow_writer.py DIRECTORY SEED [layers heads wide positions vocabulary]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf  # type: ignore[import-not-found]


def main(directory: Path, seed: int, n_layer: int, n_head: int, c: int, n_ctx: int, n_vocab: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = {"wte": (n_vocab, c), "wpe": (n_ctx, c), "ln_f/g": (c,), "ln_f/b": (c,)}
    for layer in range(n_layer):
        for name, rows, columns in (
            *(("attn/c_attn", c, 3 * c), ("attn/c_proj", c, c)),
            *(("mlp/c_fc", c, 4 * c), ("mlp/c_proj", 4 * c, c)),
        ):
            shapes |= {f"h{layer}/{name}/w": (1, rows, columns), f"h{layer}/{name}/b": (columns,)}
        shapes |= {f"h{layer}/{name}/{part}": (c,) for name in ("ln_1", "ln_2") for part in "gb"}
    values = {f"model/{name}": draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    v1 = tf.compat.v1
    v1.disable_eager_execution()
    variables = [v1.get_variable(name, initializer=tf.constant(value)) for name, value in values.items()]
    with v1.Session() as session:
        session.run([variable.initializer for variable in variables])
        v1.train.Saver(variables).save(session, str(directory / "model.ckpt"))
    sizes = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": c, "n_head": n_head, "n_layer": n_layer}
    (directory / "hparams.json").write_text(json.dumps(sizes))
    np.savez(directory.with_suffix(".npz"), **{name.replace("/", "|"): value for name, value in values.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *(int(word) for word in sys.argv[3:8] or (2, 2, 16, 32, 300)))
