"""Data: windows of bytes from text, examples from tables, arrays and sets that come with scikit-learn, and the order of an epoch."""

from framework.data.arrays import ArrayDataset, clusters, pictures
from framework.data.dataset import Dataset, spread
from framework.data.examples import Examples, Form, Task, prepare
from framework.data.order import Batches, EpochOrder, LastBatch, order_dtype
from framework.data.sources import open_examples, open_text
from framework.data.text import ByteText

__all__ = [
    "ArrayDataset",
    "Batches",
    "ByteText",
    "Dataset",
    "EpochOrder",
    "Examples",
    "Form",
    "LastBatch",
    "Task",
    "clusters",
    "open_examples",
    "open_text",
    "order_dtype",
    "pictures",
    "prepare",
    "spread",
]
