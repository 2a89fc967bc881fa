#!/usr/bin/env bash
# Forget two capitals, then see what is gone, and what went with it.
#
#   examples/edit_then_evaluate.sh                                  MEMIT on the small default model, minutes on a CPU
#   MODEL=org/name examples/edit_then_evaluate.sh --editor rome     arguments are for `unlearn-eval edit`
#
# MODEL: hub id or folder. OUT: where everything is written.
set -euo pipefail
MODEL=${MODEL:-default}
OUT=${OUT:-edited}

unlearn-eval edit --model "$MODEL" --forget facts --ids capital_of/france,capital_of/italy --output "$OUT/edit" "$@"
unlearn-eval inspect "$OUT/edit"
# What the edit forgot, asked as it was made; the model without it is evaluated too, and the two are compared.
unlearn-eval eval --model "$MODEL" --edit "$OUT/edit" --tasks unlearn_facts --baseline --output "$OUT/after.json" \
  --metadata '{"retain": ["capital_of/japan", "author_of/hamlet"], "encoder": "off"}'
