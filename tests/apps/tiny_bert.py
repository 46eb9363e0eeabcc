"""Write a BERT of two layers, with random weights and a vocabulary of letters, to the folder that is given."""

import sys
from pathlib import Path
from string import ascii_lowercase

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

folder = Path(sys.argv[1])
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{one}" for one in ascii_lowercase)]
(folder / "vocab.txt").write_text("\n".join(words))
BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
torch.manual_seed(0)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
