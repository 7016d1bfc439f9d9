"""The schedules that a kernel must give the same bits under: ten random ones with QUACK_TESTS=all (`make test-all`)."""

import os

RANDOM_SEEDS = range(10)
SEEDS = RANDOM_SEEDS if os.environ.get("QUACK_TESTS") == "all" else RANDOM_SEEDS[:4]
EVERY_SCHEDULE = ("eager", "latest", *(f"random:{seed}" for seed in SEEDS))
