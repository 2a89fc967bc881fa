"""`python -m unlearn_eval.cli` is the command `unlearn-eval`."""

from unlearn_eval.cli import main

main()
