#!/bin/sh
# One's own footage, from a recording to alarms: own_footage.sh RECORDING LABELS OUT VIDEO...
# LABELS has one 0 or 1 per frame. The first 60% of the clips are trained on, the others tested. Ends with an error
# unless the model is above the event density in AUC and AP on the clips that were kept aside.
set -eu
recording=$1 labels=$2 out=$3
shift 3
python=${PYTHON:-python}

"$python" -m iefvad.extract "$recording" --out "$out/whole" --image-model efficientnet-lite0 --frames-per-segment 4
"$python" -m iefvad.data cut "$out/whole" --labels "$labels" --segments 30 --train-fraction 0.6 --out "$out/store"
"$python" -m iefvad.train --features "$out/store" --out "$out/run"
"$python" -m iefvad.detect "$out/run" "$@" --out "$out/detections"
"$python" - "$out/run/metrics.json" <<'JUDGE'
import json
import sys

metrics = json.load(open(sys.argv[1]))
for key in ("auc", "ap"):
    model, density = metrics["fusion"][key], metrics["event density"][key]
    print(f"{key}: model {model:.3f}, event density {density:.3f}")
    if not model > density:
        sys.exit("the model is not above the event density")
JUDGE
