"""The schedules that a kernel must give the same bits under: ten random ones with QUACK_TESTS=all (`make test-all`)."""

import os

SEEDS = range(10 if os.environ.get("QUACK_TESTS") == "all" else 4)
EVERY_SCHEDULE = ("eager", "latest", *(f"random:{seed}" for seed in SEEDS))
