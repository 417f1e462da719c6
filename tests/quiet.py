"""How TRL's trainers are set in tests: on the CPU, in float32, nothing saved, shown or recomputed."""

QUIET = {
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
