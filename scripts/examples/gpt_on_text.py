"""Trains a small transformer on your own text, byte by byte, and lets it write.

python gpt_on_text.py                             # the sources of Python's standard library
python gpt_on_text.py --text notes/ letters.txt   # files and folders of your own, some tens of kilobytes or more
"""

from __future__ import annotations

from pathlib import Path

import tyro

from checkpointing.generation import generate
from distributed import Trainer
from framework import (
    GELU,
    ByteText,
    CausalAttention,
    Chain,
    CrossEntropy,
    Embedding,
    LayerNorm,
    Linear,
    Model,
    Residual,
)


def transformer(blocks: int, features: int, heads: int, window: int) -> Chain:
    """Pre-norm blocks of attention and a two-layer network, between a table of bytes and a head."""

    def block() -> Chain:
        attention = Chain(LayerNorm(), Linear(3 * features), CausalAttention(heads), Linear(features))
        mlp = Chain(LayerNorm(), Linear(4 * features), GELU(), Linear(features))
        return Chain(attention=Residual(attention), mlp=Residual(mlp))

    body = {f"block{number}": block() for number in range(blocks)}
    return Chain(embedding=Embedding(256, window, features), **body, norm=LayerNorm(), head=Linear(256))


def main(
    text: tuple[Path, ...] = (),
    steps: int = 320,
    workers: int = 0,
    memory_budget: str = "engine:60%",
    prompt: str = "import ",
) -> None:
    """Trains on text.

    Args:
        text: Files and folders of text.
        steps: Training steps of 16 windows of 64 bytes.
        workers: Ray workers; 0 trains in this process. The result has the same bits.
        memory_budget: Most bytes of each worker's engine.
        prompt: What the model continues.
    """
    window = 64
    data = ByteText([str(path) for path in text], window)
    chain = transformer(blocks=2, features=64, heads=4, window=window)
    model = Model("my-gpt", chain, CrossEntropy(), lambda paths: data)
    # V = 2 shards of 8 windows; two Ray workers would do one each.
    options = {"batch": 16, "shards": 2, "steps": steps, "learning_rate": 5e-3, "memory_budget": memory_budget}
    trainer = Trainer(model, data=data, workers=workers, **options)
    print(f"{trainer.plans.peak:,} bytes in each worker, by {trainer.plans.policy.name}")

    def tell(row: dict[str, float]) -> None:
        if row["step"] % max(1, steps // 8) == 0:
            print(f"step {row['step']:4d}  loss {row['loss']:.3f}")

    result = trainer.fit(on_step=tell)
    print(f"validation: {result.summary['validation_loss']:.3f} nats a byte; 5.545 would be guessing\n")
    written = generate(model, result.parameters, prompt.encode(), 200, temperature=0.7)
    print(prompt + b"".join(written).decode(errors="replace"))


if __name__ == "__main__":
    tyro.cli(main)
