"""Text that language models are trained with: files of rows, and arrays made of them.

Files are JSONL or Parquet, with the columns of TRL:

    text                              pretraining
    prompt completion                 supervised fine-tuning
    prompt chosen rejected [margin]   preferences
    prompt ranked                     rankings: a list of responses, best first
    prompt                            prompts to respond to

Other columns are not looked at. A value is a string or a conversation
(`jaxrl.rlhf.models.chat`). A row that cannot be used is refused by file and line; none is
dropped in silence.

Shapes: R rows, K responses to one prompt, T columns, P columns of a prompt.
"""

from jaxrl.rlhf.data.arrays import (
    Pairs,
    Prompts,
    Texts,
    completions,
    preferences,
    prompts,
    rankings,
    texts,
)
from jaxrl.rlhf.data.files import Row, open_append, read, write_rows
from jaxrl.rlhf.data.rows import Format, characters, split

__all__ = [
    "Format",
    "Pairs",
    "Prompts",
    "Row",
    "Texts",
    "characters",
    "completions",
    "open_append",
    "preferences",
    "prompts",
    "rankings",
    "read",
    "split",
    "texts",
    "write_rows",
]
