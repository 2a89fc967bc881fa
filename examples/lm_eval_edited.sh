#!/usr/bin/env bash
# Evaluate an edit with lm-evaluation-harness itself: its `lm_eval` knows our tasks and the model `edited`.
#
#   examples/lm_eval_edited.sh                       makes a small edit of the default model first
#   EDIT=my_edit MODEL=org/name examples/lm_eval_edited.sh --tasks arc_easy,hellaswag --limit 100
#
# MODEL: hub id or folder. EDIT: folder of an edit of it. OUT: where everything is written. Arguments are for `lm_eval`.
set -euo pipefail
MODEL=${MODEL:-$(unlearn-eval fetch-model)}
OUT=${OUT:-edited}
EDIT=${EDIT:-$OUT/edit}
ASK='{"forget": ["capital_of/france"], "retain": ["capital_of/japan"], "encoder": "off"}'

if [ ! -e "$EDIT/edit.json" ]; then
  unlearn-eval edit --model "$MODEL" --forget facts --ids capital_of/france --output "$EDIT"
fi
if [ $# -eq 0 ]; then
  set -- --tasks unlearn_facts --metadata "$ASK"
fi
lm_eval --model edited --model_args "pretrained=$MODEL,edit=$EDIT,dtype=float32" \
  --apply_chat_template --batch_size 16 --output_path "$OUT" --log_samples "$@"
