#!/bin/sh
# 7. Examples 1 to 5 as commands: what a lab types for its own dataset, from scans to a report and results.
#
#     sh examples/07_commands.sh [FOLDER] [SUBJECTS] [STEPS]
set -eu
folder=${1:-runs/commands} subjects=${2:-24} steps=${3:-560}

neurotome phantom "$folder/raw" --subjects "$subjects" --spacing 4.5
neurotome check "$folder/raw" --out "$folder/check.json" --overwrite
neurotome inspect "$folder/raw"
neurotome prepare "$folder/raw" "$folder/store" --modalities T1w T2w --spacing 4.5 --shape 32 40 40
neurotome train anatome-demo "$folder/store" --out "$folder/run" --trainer.max_steps "$steps"
neurotome evaluate "$folder/run/model" "$folder/store" --out "$folder/run"
neurotome report "$folder/run"
# one contrast of the whole dataset into the other: BIDS derivatives beside, never in, the dataset
neurotome translate "$folder/run/model" "$folder/raw" "$folder/derivatives" --to T2w
neurotome doctor "$folder/run/model"
