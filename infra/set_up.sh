#!/bin/sh
# Make what a new server needs: work pool, queue of writers, deployments, automations.
# Run again after each upgrade: what is there already is kept or replaced.
set -eu
POOL_TYPE=${LATENTPACK_POOL_TYPE:-process}
if [ -n "${LATENTPACK_JOB_TEMPLATE:-}" ]; then
    prefect --no-prompt work-pool create latentpack --type "$POOL_TYPE" --overwrite \
        --base-job-template "$LATENTPACK_JOB_TEMPLATE"
else
    prefect --no-prompt work-pool create latentpack --type "$POOL_TYPE" --overwrite
fi
prefect --no-prompt work-queue create writers --pool latentpack --limit 1 ||
    prefect --no-prompt work-queue set-concurrency-limit writers 1 --pool latentpack
prefect --no-prompt deploy --all
# Those that are missing: a second import would make a second one of the same name, and one made anew would forget the
# heartbeats that it waits for.
automations="$(dirname "$0")/automations.yaml"
missing=$(mktemp)
sed -n 's/^  - name: "\(.*\)"$/\1/p' "$automations" | while read -r name; do
    prefect --no-prompt automation inspect "$name" > /dev/null 2>&1 || echo "$name"
done > "$missing"
if [ -s "$missing" ]; then
    python -c "
import sys, yaml
given, names, chosen = yaml.safe_load(open(sys.argv[1])), open(sys.argv[2]).read().splitlines(), sys.argv[2] + '.yaml'
wanted = [one for one in given['automations'] if one['name'] in names]
yaml.safe_dump({'automations': wanted}, open(chosen, 'w'))" "$automations" "$missing"
    prefect --no-prompt automation create --from-file "$missing.yaml"
fi
rm -f "$missing" "$missing.yaml"
