#!/usr/bin/env bash
# The shipped transformer and a warmed-up text encoder (warm_text.py) to new weights, on one GPU. Scenes are drawn
# and encoded while the transformer already trains on the first of them.
#
# SCENES (120000) are how many, DRAWING and WORKERS (6 each) the processes that draw scenes and make batches.
#
#   training/train_on_gpu.sh RUN WEIGHTS MINUTES TEXT [PYTHON]
#   training/train_on_gpu.sh runs/transformer new-weights 4 runs/text
set -euo pipefail
run=$1 weights=$2 minutes=$3 text=$4 python=${5:-python3}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/runtime:$PWD/calibration${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
shipped=ldp_export/models/weights/infinity_shapes
data=$run/data
mkdir -p "$run"
$python training/encode_latents.py --vae $shipped/vae.safetensors --data "$data" --count "${SCENES:-120000}" \
    --device cuda --workers "${DRAWING:-6}" --batch 128 > "$run/encode.log" 2>&1 &
encoding=$!
until [ -s "$data/encoded.txt" ] || ! kill -0 $encoding 2> /dev/null; do sleep 0.2; done
$python training/train_transformer.py --device cuda --compile --workers "${WORKERS:-6}" --data "$data" \
    --vae $shipped/vae.safetensors --text "$text" --start $shipped --out "$run" \
    --steps 1000000 --minutes "$minutes" --by-time --save-every 2000 --log-every 200 \
    --batch 256 --coarse-batch 512 --coarse-share 0.5 --coloured 0.65 --decay 0.999
wait $encoding
$python training/export.py --vae $shipped/vae.safetensors --run "$run" --text "$text" --out "$weights"
