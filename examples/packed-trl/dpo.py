"""A DPO run of TRL with packed passes: `python dpo.py MODEL PAIRS [--max_steps 100 and what else DPOConfig has]`.

Without margincast the line that imports the trainer is `from trl import DPOTrainer as Trainer`. Nothing else differs.
"""

import sys

from datasets import load_dataset
from transformers import HfArgumentParser
from trl import DPOConfig

from margincast.trl import PackedDPOTrainer as Trainer

model, pairs, *settings = sys.argv[1:]
(config,) = HfArgumentParser(DPOConfig).parse_args_into_dataclasses(settings)
trainer = Trainer(model=model, args=config, train_dataset=load_dataset("json", data_files=pairs, split="train"))
trainer.train()
