#!/bin/sh
# Caption an image:           ./run.sh photo.jpg
# Ask another question:       ./run.sh photo.jpg "What is written on the sign?"
# Use another checkpoint:     MODEL=sharegpt4v-7b ./run.sh photo.jpg
set -eu
exec "${PYTHON:-python}" "$(dirname "$0")/run_share4v.py" \
    --model-path "${MODEL:-sharegpt4v-tiny}" \
    --image-file "${1:?usage: run.sh IMAGE [QUESTION]}" \
    --query "${2:-Describe this image}"
