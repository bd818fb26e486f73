#!/bin/sh
# Caption the images and videos of a folder for Open-Sora and Open-Sora-Plan. Edit the three lines below, or set the
# environment variables:  VIDEO_FOLDER=videos OUTPUT=annotations MODEL=sharegpt4v-7b ./run.sh --frames grid --count 9
set -eu
model_path=${MODEL:-sharegpt4v-tiny}             # a known name, or /path/to/model/folder
video_folder=${VIDEO_FOLDER:-/path/to/videos}    # images and videos, including subfolders
output=${OUTPUT:-/path/to/annotations}           # receives open_sora_plan.json and open_sora.csv

exec "${PYTHON:-python}" "$(dirname "$0")/../caption_videos.py" \
    --model-path "$model_path" \
    --video-folder "$video_folder" \
    --output "$output" \
    "$@"
